"""Loads the text tower that belongs to an open_clip image tower, with its tokenizer, and embeds texts."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import open_clip
import torch

from build.errors import BuildError
from build.open_clip_tower import load_clip
from build.tower import weights_sha256
from build.weights import OPEN_CLIP_CONFIG, first_line, offline_if_unreachable, weights_folder
from recipes.encoder_section import Encoder
from recipes.prompts import why_no_texts
from recipes.schema import RecipeError

_TEXTS_PER_BATCH = 64
_TOKENIZER_FILES = "tokenizer.json, tokenizer_config.json and special_tokens_map.json"

Tokenizer = Callable[..., torch.Tensor]
"""(texts, context_length) → (n, context_length) int64."""


@dataclass(frozen=True)
class TextTower:
    """A text encoder in torch, with the numbers by which its model makes logits of cosines.

    Attributes:
        model: both towers.
        tokenizer: the library's own.
        image_weights_sha256: of the image tower beside it, as encoder.json has it.
        logit_scale: factor of the cosines.
        logit_bias: summand, of models that were trained with a sigmoid.
    """

    model: Any
    tokenizer: Tokenizer
    image_weights_sha256: str
    logit_scale: float
    logit_bias: float | None

    def embed(self, texts: list[str]) -> tuple[np.ndarray, list[str]]:
        """(n, embed_dim) float32 of length 1, and the texts that the tower could not read to their ends.

        Raises:
            BuildError: the tokenizer knows words that the tower does not.
        """
        tokens = self.tokenizer(texts)
        self._check_vocabulary(tokens)
        with torch.inference_mode():
            blocks = [self.model.encode_text(part, normalize=True) for part in tokens.split(_TEXTS_PER_BATCH)]
        return torch.cat(blocks).float().numpy(), list(itertools.compress(texts, self._are_cut(texts, tokens)))

    def library_direction(self, texts: list[str]) -> np.ndarray:
        """(embed_dim,) float32 of length 1: the weights of a class with these texts in open_clip's own classifier."""
        templates = [lambda _, text=text: text for text in texts]
        columns = open_clip.build_zero_shot_classifier(self.model, self.tokenizer, [""], templates)
        return columns[:, 0].float().numpy()

    def _are_cut(self, texts: list[str], tokens: torch.Tensor) -> list[bool]:
        """Compare with the tokens that more room would hold."""
        length = tokens.shape[1]
        more = self.tokenizer(texts, context_length=2 * length)
        same, padding = (more[:, :length] == tokens).all(dim=1), more[:, length:] == more[:, -1:]
        return (~(same & padding.all(dim=1))).tolist()

    def _check_vocabulary(self, tokens: torch.Tensor) -> None:
        part = getattr(self.model, "text", self.model)
        words = getattr(getattr(part, "token_embedding", None), "num_embeddings", None)
        if words is not None and int(tokens.max()) >= words:
            raise BuildError(
                f"the text tower knows {words} words, the tokenizer gives word {int(tokens.max())}: they do not belong "
                "together; look at vocab_size in the text_cfg of the model's config, 49408 for CLIP's own tokenizer"
            )


def load_text_tower(encoder: Encoder) -> TextTower:
    """Load the towers of a recipe's encoder, in eval mode, float32, on the CPU.

    Raises:
        RecipeError: the encoder has no text tower, its weights cannot be loaded, or the tokenizer's files are missing.
    """
    if (reason := why_no_texts(encoder)) is not None:
        raise RecipeError(f"texts have no embedding here: {reason}")
    model: Any = load_clip(encoder)[0].eval().float().requires_grad_(False)
    bias = getattr(model, "logit_bias", None)
    return TextTower(
        model=model,
        tokenizer=_tokenizer(encoder),
        image_weights_sha256=weights_sha256(model.get_submodule("visual")),
        logit_scale=math.exp(float(model.logit_scale)),
        logit_bias=None if bias is None else float(bias),
    )


def _tokenizer(encoder: Encoder) -> Tokenizer:
    folder = weights_folder(encoder)
    try:
        with offline_if_unreachable(None, on_hub=folder is None and bool(_hub_tokenizer(encoder))):
            return open_clip.get_tokenizer(encoder.model if folder is None else f"local-dir:{folder}")
    except Exception as error:  # of transformers, which has many
        raise RecipeError(_tokenizer_advice(encoder, error)) from error


def _tokenizer_advice(encoder: Encoder, error: Exception) -> str:
    package = ""
    if isinstance(error, ModuleNotFoundError):
        package = " It is read by a package that is not installed here: .venv/bin/uv pip install transformers."
    source = _hub_tokenizer(encoder) or encoder.model
    return (
        f"the tokenizer of {encoder.model} could not be loaded: {first_line(error)}.{package}\n"
        f"On a machine with a network fetch {_TOKENIZER_FILES} of {source} from the Hugging Face hub, put them into a "
        f"folder beside {OPEN_CLIP_CONFIG} and the checkpoint, and name it in the recipe:\n"
        "  encoder:\n    weights: weights/<folder>"
    )


def _hub_tokenizer(encoder: Encoder) -> str:
    """The repository that the model's config names for its tokenizer; empty where the library has it."""
    folder = weights_folder(encoder)
    if folder is None:
        config = open_clip.get_model_config(encoder.model) or {}
    else:
        config = json.loads((folder / OPEN_CLIP_CONFIG).read_text(encoding="utf-8"))["model_cfg"]
    return str(config.get("text_cfg", {}).get("hf_tokenizer_name", ""))
