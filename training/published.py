"""The published heads that `training.import_head` knows: what they are, where they lie and what they fit."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

from recipes.encoder_section import Encoder
from training.errors import StepError

PREPROCESSING = "exact-shortest-bicubic-224"
"""Of every published head here: CLIP's own resize and crop."""

_NSFW = "https://raw.githubusercontent.com/LAION-AI/CLIP-based-NSFW-Detector/main/"
_IMPROVED = "https://raw.githubusercontent.com/christophschuhmann/improved-aesthetic-predictor/main/"
_AESTHETIC = "https://raw.githubusercontent.com/LAION-AI/aesthetic-predictor/main/"


@dataclass(frozen=True)
class PublishedHead:
    """One published head.

    `sequence` is the torch.nn.Sequential it was: a width is a Linear to so many values, "relu" a ReLU and
    a fraction a Dropout. Of a Keras head it holds what comes after the standardisation.
    """

    name: str
    format: Literal["torch", "keras"]
    encoder: Encoder
    embed_dim: int
    sequence: tuple[int | float | str, ...]
    url: str
    sha256: str | None
    """None where the sum is not known: whoever imports it has to vouch for the file."""
    licence: str
    task: Literal["binary", "regression"]
    activation: Literal["sigmoid", "none"]
    thresholds: tuple[float, ...] = ()
    key: str = "layers.{index}.{part}"
    """Name of a tensor in the state dict: `index` counts in `sequence`, `part` is weight or bias."""
    rank_columns: tuple[int, ...] = ()
    """Columns that AutoKeras took for categories."""

    @property
    def file(self) -> str:
        return self.url.rsplit("/", 1)[1].replace("%2B", "+")

    @property
    def class_names(self) -> list[str]:
        return ["safe", "nsfw"] if self.task == "binary" else ["aesthetic"]


def published_head(name: str) -> PublishedHead:
    """The published head called `name`.

    Raises:
        StepError: there is none; the message has the nearest names.
    """
    if name not in PUBLISHED:
        nearest = difflib.get_close_matches(name, PUBLISHED, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(map(repr, nearest))}? " if nearest else ""
        raise StepError(f"unknown published head {name!r}; {hint}known: {', '.join(PUBLISHED)}")
    return PUBLISHED[name]


def _openai(model: str) -> Encoder:
    return Encoder(model=f"{model}-quickgelu", pretrained="openai")


def _improved_aesthetic(name: str, file: str, sha256: str | None, relu: bool) -> PublishedHead:
    linear = (1024, 0.2, 128, 0.2, 64, 0.1, 16, 1)
    with_relu = (1024, "relu", 0.2, 128, "relu", 0.2, 64, "relu", 0.1, 16, "relu", 1)
    return PublishedHead(
        name=name,
        format="torch",
        encoder=_openai("ViT-L-14"),
        embed_dim=768,
        sequence=with_relu if relu else linear,
        url=_IMPROVED + file.replace("+", "%2B"),
        sha256=sha256,
        licence="Apache-2.0",
        task="regression",
        activation="none",
    )


def _aesthetic_v1(suffix: str, model: str, embed_dim: int, file: str, sha256: str | None) -> PublishedHead:
    return PublishedHead(
        name=f"laion-aesthetic-v1-{suffix}",
        format="torch",
        encoder=_openai(model),
        embed_dim=embed_dim,
        sequence=(1,),
        key="{part}",
        url=_AESTHETIC + file,
        sha256=sha256,
        licence="MIT",
        task="regression",
        activation="none",
    )


_HEADS = (
    PublishedHead(
        name="laion-nsfw-l14",
        format="keras",
        encoder=_openai("ViT-L-14"),
        embed_dim=768,
        sequence=(64, "relu", 512, "relu", 256, "relu", 1),
        rank_columns=(180, 316, 413, 440, 644),
        url=_NSFW + "clip_autokeras_binary_nsfw.zip",
        sha256="905520bb0336accc73ee282c605d926aef90cf14248889d44b9cee50eef71f8a",
        licence="MIT",
        task="binary",
        activation="sigmoid",
        thresholds=(0.5,),
    ),
    PublishedHead(
        name="laion-nsfw-b32",
        format="keras",
        encoder=_openai("ViT-B-32"),
        embed_dim=512,
        sequence=(32, "relu", 32, "relu", 1),
        rank_columns=(92, 133, 312),
        url=_NSFW + "clip_autokeras_nsfw_b32.zip",
        sha256="78715ab9d64485167e8c9ade3b8e6761a17a16c24d114bd47431ac1dab46462b",
        licence="MIT",
        task="binary",
        activation="sigmoid",
        thresholds=(0.5,),
    ),
    PublishedHead(
        name="laion-nsfw-h14",
        format="torch",
        encoder=Encoder(model="ViT-H-14", pretrained="laion2b_s32b_b79k"),
        embed_dim=1024,
        sequence=(
            *(1024, "relu", 0.2, 2048, "relu", 0.2, 1024, "relu", 0.2),
            *(256, "relu", 0.2, 128, "relu", 0.2, 16, 1),
        ),
        url=_NSFW + "h14_nsfw.pth",
        sha256=None,
        licence="MIT",
        task="binary",
        activation="none",  # trained with a squared error on 0 and 1: the raw value is the score
        thresholds=(0.5,),
    ),
    _improved_aesthetic(
        "laion-aesthetic-v2",
        "sac+logos+ava1-l14-linearMSE.pth",
        "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0",
        relu=False,
    ),
    _improved_aesthetic("ava-logos-linear", "ava+logos-l14-linearMSE.pth", None, relu=False),
    _improved_aesthetic(
        "ava-logos-relu",
        "ava+logos-l14-reluMSE.pth",
        "0af3254c651d55b7ea851429c20f26ec880bb0169805a4df85b814bd7966f3e4",
        relu=True,
    ),
    _aesthetic_v1("b16", "ViT-B-16", 512, "sa_0_4_vit_b_16_linear.pth", None),
    _aesthetic_v1(
        "b32",
        "ViT-B-32",
        512,
        "sa_0_4_vit_b_32_linear.pth",
        "c7b14cead230694acc7b9447974d3cad78003c72da032e402a303b6c2429e85f",
    ),
    _aesthetic_v1(
        "l14",
        "ViT-L-14",
        768,
        "sa_0_4_vit_l_14_linear.pth",
        "2cd4e60f4f24ae3bcd57b847b13c1f3ba27edc28cc1a7f9ce74ee9f421243cba",
    ),
)

PUBLISHED = {head.name: head for head in _HEADS}
