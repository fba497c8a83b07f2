// Names of heads and labels that say what nobody wants to see unasked.

const SAFETY = /nsfw|porn|explicit|sexual|nud|hentai|unsafe|gore|violen|adult|abuse/i;
