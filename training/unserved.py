"""Pictures in formats that the recipe's server does not decode: named as what they are, and never trained on.

A head that learnt from them would be asked about none: training decodes what `serving.formats` names, as the server.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from common.pixels import import_served
from training.sample import Failure

_ENDING = "_NOT_SERVED"
_SUFFIXES = {
    "avif": "AVIF",
    "heic": "HEIC",
    "heif": "HEIC",
    "hif": "HEIC",
    "jxl": "JPEG_XL",
    "psd": "PSD",
    **dict.fromkeys(("tif", "tiff", "dng"), "TIFF"),
}


def format_of(data: bytes) -> str | None:
    """The format of a picture that is none of those which the server knows by default; None for anything else."""
    return import_served("clip_kinds").picture_format(data)


def format_of_suffix(suffix: str) -> str | None:
    """Name the format as `format_of` does, by a suffix without its dot."""
    return _SUFFIXES.get(suffix.lower())


def unserved(path: str, format: str) -> Failure:
    """The row of errors.csv of such a picture.

    Args:
        path: as tables say it.
        format: a name that `format_of` gives.
    """
    return Failure(path, f"{format}{_ENDING}", f"a {_shown(format)} picture: {_remedy(format)}")


def unserved_texts(failures: Iterable[Failure]) -> list[str]:
    """A line for each format: how many of its pictures were passed over, and what to do."""
    counts = Counter(failure.code.removesuffix(_ENDING) for failure in failures if failure.code.endswith(_ENDING))
    return [
        f"{count} {_shown(format)} picture{'s' if count > 1 else ''} passed over: {_remedy(format)}"
        for format, count in sorted(counts.items())
    ]


def _shown(format: str) -> str:
    return format.replace("_", " ")


def _remedy(format: str) -> str:
    if format in import_served("clip_kinds").CAN_BE_TAKEN:
        return f"add {format} to serving.formats of the recipe, and training and the server decode it"
    return "convert to JPEG or PNG, here and before pictures are sent to the server, which does not decode it"
