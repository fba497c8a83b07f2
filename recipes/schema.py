"""The recipe: one YAML file that describes a deployment. Every other setting follows from it.

python -m recipes.schema demo                                   # validate a recipe and print it with its defaults
python -m recipes.schema demo --set serving.max_batch_size=8    # with another value
"""

from __future__ import annotations

import argparse
import datetime
import difflib
import json
import math
import re
import sys
import types
import typing
import unicodedata
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from recipes.classifiers import check_classifier, check_classifier_encoder, is_repository, why_no_classifier
from recipes.errors import ExpectedError, run_step
from recipes.overrides import add_set_option, overridden, parse_override
from recipes.prompts import check_prompts, why_no_texts

ImageFormat = Literal["JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF", "HEIC", "TIFF"]
Decode = Literal["exact", "scaled"]
Task = Literal["binary", "multiclass", "multilabel", "regression", "ranking"]
Loss = Literal["bce", "mse", "cross_entropy", "ab", "nll"]
ModelName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=48)]
Url = Annotated[str, Field(pattern=r"^https?://[^/\s]+/.")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


RECIPES = Path(__file__).resolve().parent


class RecipeError(ExpectedError):
    """The recipe cannot be used; the message names the key, its value and what to do."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def _is_unset(value: Any) -> bool:
    """True of a key that a recipe leaves out, which is then left out of manifests, as before there was the key."""
    return value is None or value == {}


class Augment(_Section):
    """Random changes of each training picture, drawn anew in every epoch. The order is that of the keys."""

    crop_scale: float = Field(default=0.6, gt=0, le=1)
    """The least share of the picture that a random crop keeps; 1 crops nothing."""
    flip: float = Field(default=0.5, ge=0, le=1)
    """The share of pictures that are mirrored left to right."""
    rotation: float = Field(default=10, ge=0, le=180)
    """The most degrees that a picture is turned either way."""
    brightness: float = Field(default=0.2, ge=0, le=1)
    """The most that brightness changes, as a share of itself."""
    contrast: float = Field(default=0.2, ge=0, le=1)
    """The most that contrast changes, as a share of itself."""
    saturation: float = Field(default=0.2, ge=0, le=1)
    """The most that saturation changes, as a share of itself."""
    hue: float = Field(default=0.02, ge=0, le=0.5)
    """The most that hue is turned either way, in turns of the colour wheel."""
    blur: float = Field(default=0.1, ge=0, le=1)
    """The share of pictures that are blurred."""


class Finetune(_Section):
    """Settings of `training.finetune`, which trains the whole encoder with one linear layer on its features.

    The split is that of the head (`fit.test_fraction`, `fit.validation_fraction`, `fit.seed`): early stopping looks at
    the validation part, and nothing at the test part.
    """

    model: str
    """A model of timm, with the tag of its pretrained weights as timm writes it: `convnext_tiny.fb_in22k`, or
    `vit_base_patch32_clip_quickgelu_224.openai` for a CLIP tower; `clipsieve_cnn` is a baseline of two convolutions
    for any CPU. Without a tag and `weights` it starts from random weights."""
    weights: Path | None = None
    """A checkpoint of the model to start from: a file (.safetensors, .pth, .bin) or a folder as the hub has it
    (config.json and model.safetensors), be it one that `training.finetune` wrote."""
    image_size: int | None = Field(default=None, ge=1)
    """The input, in pixels along an edge, instead of the model's own."""
    resize: Literal["shortest", "squash"] | None = None
    """How pictures get there, instead of the model's own way: `shortest` resizes the short edge and crops the centre,
    `squash` ignores the aspect ratio; both without a margin."""
    freeze: Annotated[int, Field(ge=0)] | list[str] = 0
    """Parameters that keep their weights: those of so many of the lowest layers, as timm counts them, or patterns of
    names, of which the last that matches counts: `['stem.*', 'stages.0.*']`. `['*', '!*.bias']` trains biases alone.
    The last linear layer is always trained."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """The learning rate of each layer in units of that of the layer above it."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """The learning rate of AdamW after warm-up; it falls to 0 along a cosine."""
    warmup_epochs: float = Field(default=1, ge=0)
    """Epochs of linear warm-up."""
    weight_decay: float = Field(default=0.05, ge=0)
    """The weight decay of matrices and kernels; biases and norms have none."""
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """The share of features that the last layer does not see; by default the model's own, mostly none."""
    drop_path: float | None = Field(default=None, ge=0, lt=1)
    """The share of residual branches that are left out, of models that can; by default the model's own, mostly none."""
    loss: Literal["bce", "cross_entropy"] | None = None
    """By default cross_entropy of a multiclass head, and bce of others."""
    class_weights: bool = False
    """Weigh classes by the inverse of their frequency (bce's pos_weight)."""
    label_smoothing: float = Field(default=0, ge=0, lt=1)
    """The share of each target that goes to the other classes alike."""
    augment: Augment = Augment()
    """Random changes of training pictures."""
    batch_size: int = Field(default=32, ge=1)
    """Pictures in one step, on all devices together."""
    epochs: int = Field(default=10, ge=1)
    """The most passes over the training pictures."""
    patience: int = Field(default=4, ge=1)
    """Stop after this many epochs without a better AUROC on the validation part; the best epoch is kept."""
    seed: int = 0
    """The seed of the new layer, the order of pictures, their changes and what is left out."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of products in training: bf16 and fp16 are for GPUs, and mixed with fp32 where that is needed."""
    devices: int = Field(default=1, ge=0)
    """GPUs (without one: processes on the CPU) that share each step; 0 takes all."""
    near_duplicate_bits: int | None = Field(default=20, ge=0, le=127)
    """Pictures whose perceptual hashes of 256 bits differ in so many bits at most share a side of the split; null looks
    at exact duplicates only."""
    maximum_unreadable: float = Field(default=0.01, ge=0, lt=1)
    """The largest share of files that may be unreadable; they are listed and left out. Above it nothing is trained."""


class Encoder(_Section):
    """The image tower and where its weights come from, or several under `concatenate`.

    `weights` (a file, a folder or an address) is loaded when it is given, else `pretrained` (a tag) or the repository
    that `model` names is downloaded; with neither the tower is initialised at random from `seed`. With both, the file
    is taken for a copy of the tag's weights; where the sum of the tag's own file is known the two are compared.

    An image classifier of timm or transformers (a folder with config.json beside its weights, or the hub's repository
    of one) gives its backbone up to the last linear layer; that layer is a head with `classifier`.
    """

    library: Literal["open_clip", "timm", "transformers"] = "open_clip"
    """Whose model it is. With timm, `model` may hold the tag: `vit_large_patch14_clip_quickgelu_224.openai`.
    transformers is for image classifiers, and is an extra: `make transformers`."""
    model: str = ""
    """A model name of the library such as `ViT-B-32-quickgelu`; of an image classifier on the Hugging Face hub its
    repository, `Marqo/nsfw-image-detection-384`; any name when `open_clip_config` is given or `weights` is a folder
    with a config of its own."""
    pretrained: str | None = None
    """A pretrained tag of the model such as `openai`; the hub's cache is used when it has the file."""
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = None
    """The commit of the hub's repository to take the model from, instead of its newest; recorded either way."""
    weights: Url | Path | None = None
    """A local checkpoint (.pt, .bin, .safetensors) in the library's or OpenAI's layout, its http(s) address,
    or a folder as the Hugging Face hub has it: open_clip_config.json beside open_clip's checkpoint, or config.json
    beside model.safetensors (timm's, or transformers' with preprocessor_config.json)."""
    weights_sha256: Sha256 | None = None
    """The sha256 of the checkpoint; required for an address, checked for a file when it is given."""
    open_clip_config: dict[str, Any] | None = None
    """An open_clip model config (embed_dim, vision_cfg, text_cfg) for a tower open_clip does not list."""
    image_size: int | None = Field(default=None, ge=1)
    """A timm model's input, in pixels along an edge, instead of its own: 224 for a DINOv2 of 518. Whole patches of a
    transformer, whose positions timm interpolates; a convolutional network takes pictures of any size as it is."""
    seed: int = 0
    """Seed of the random weights when there is neither `weights` nor `pretrained`."""
    normalize: bool = True
    """L2-normalise the embedding inside the graph. Every published CLIP head expects it."""
    layers: list[Annotated[int, Field(ge=0)]] = Field(default=[0], min_length=1)
    """Layers that are concatenated into the embedding: 0 is the model's final output, n the output of the n-th block
    from the end, before any later norm or projection. Vision transformers only."""
    decode: Decode = "exact"
    """Decoding of large JPEGs, in training and serving: `exact` as the model's library does it, bit by bit, or
    `scaled` at 1/2, 1/4 or 1/8 of their size, several times as fast, where at least twice what the encoder sees
    remains. A head fits only the one it was trained with."""
    finetune: Finetune | None = Field(default=None, exclude_if=_is_unset)
    """Training of this encoder by `training.finetune`, which writes the folder `weights`, by default
    artifacts/classifiers/<recipe>. `library` is timm then, `model` that of this section, and `normalize` false; its
    heads have `fit: {folds: 0, near_duplicate_cosine: null}`, for the split is that of the fine-tuning."""
    concatenate: list[Encoder] = []
    """Instead of all of the above: several encoders, whose embeddings follow one another in the one that heads get."""

    @property
    def towers(self) -> list[Encoder]:
        """The encoders that are concatenated; of most recipes this one alone."""
        return self.concatenate or [self]

    @property
    def is_repository(self) -> bool:
        """True if `model` names a repository of the Hugging Face hub, of which `weights` is then a copy."""
        return self.library != "open_clip" and is_repository(self.model)

    @property
    def weights_source(self) -> str:
        """The pretrained tag, or the repository's commit (of which `weights` is then a copy), `file:<name>` or
        `random-<seed>`."""
        if self.pretrained is not None:
            return self.pretrained
        if self.is_repository:
            return self.revision[:12] if self.revision else ""
        return f"random-{self.seed}" if self.weights is None else f"file:{self.weights_name}"

    @property
    def weights_name(self) -> str:
        """Name of the file, or of the folder, of `weights`."""
        return Path(urllib.parse.urlsplit(str(self.weights)).path).name

    @property
    def id(self) -> str:
        """Folder name of the built encoder: `vit-b-32-quickgelu-openai`; of several, joined by `+`."""
        if self.concatenate:
            return "+".join(tower.id for tower in self.concatenate)
        prefix = "" if self.library == "open_clip" else f"{self.library}-"
        layers = "" if self.layers == [0] else "-layers-" + "-".join(map(str, self.layers))
        size = "" if self.image_size is None else f"-{self.image_size}px"
        suffix = ("" if self.normalize else "-unnormalized") + ("" if self.decode == "exact" else f"-{self.decode}")
        return slug(f"{prefix}{self.model}-{self.weights_source}{size}{layers}{suffix}")

    @model_validator(mode="before")
    @classmethod
    def _tag_in_name(cls, data: Any) -> Any:
        """timm writes `model.tag`; here the two are one key each."""
        name = str(data.get("model")) if isinstance(data, dict) and data.get("library") == "timm" else ""
        if "." not in name or is_repository(name):
            return data
        model, _, tag = str(data["model"]).partition(".")
        if data.get("pretrained", tag) not in (tag, None):
            raise ValueError(f"model names the tag {tag!r}, pretrained {data['pretrained']!r}; give one of them")
        return {**data, "model": model, "pretrained": tag}

    @model_validator(mode="before")
    @classmethod
    def _of_finetune(cls, data: Any) -> Any:
        """Fill in what follows from the section `finetune`."""
        tuned = data.get("finetune") if isinstance(data, dict) else None
        if not isinstance(tuned, dict) or not isinstance(tuned.get("model"), str):
            return data
        return {"library": "timm", "model": tuned["model"].partition(".")[0], "normalize": False, **data}

    @model_validator(mode="after")
    def _finetune_keys(self) -> Encoder:
        if self.finetune is None:
            return self
        other = {"library": "timm", "model": self.finetune.model.partition(".")[0], "normalize": False}
        for key, value in other.items():
            if getattr(self, key) != value:
                raise ValueError(f"{key} of an encoder with finetune is {value!r}, found {getattr(self, key)!r}")
        for key in ("pretrained", "image_size", "layers"):
            if getattr(self, key) != type(self).model_fields[key].get_default():
                raise ValueError(f"{key} goes into finetune, or is not for a fine-tuned encoder; remove it")
        if not isinstance(self.weights, Path):
            raise ValueError("weights of an encoder with finetune are a folder, which training.finetune writes")
        return self

    @model_validator(mode="after")
    def _model_or_several(self) -> Encoder:
        others = sorted(self.model_fields_set - {"concatenate"})
        if self.concatenate and others:
            raise ValueError(f"concatenate holds whole encoders; put {', '.join(others)} into each of them")
        if any(tower.concatenate for tower in self.concatenate):
            raise ValueError("concatenate is not for an encoder inside concatenate; list them all side by side")
        ids = [tower.id for tower in self.concatenate]
        if len(ids) == 1 or len(set(ids)) != len(ids):
            raise ValueError(f"concatenate is for two or more different encoders, found {', '.join(ids)}")
        decodes = [tower.decode for tower in self.concatenate]
        if len(set(decodes)) > 1:
            raise ValueError(f"a picture is decoded once for all encoders of concatenate, found decode {decodes}")
        if not self.concatenate and not self.model:
            raise ValueError("model is required, or concatenate with several encoders")
        return self

    @model_validator(mode="after")
    def _encoder_keys(self) -> Encoder:
        if isinstance(self.weights, str) and self.weights_sha256 is None:
            raise ValueError(f"weights at an address need weights_sha256, found none for {self.weights}")
        if self.weights is None and self.weights_sha256 is not None:
            raise ValueError("weights_sha256 is of weights, which is not given")
        if self.revision is not None and self.weights is not None:
            raise ValueError("revision is of the hub's file of pretrained; weights and random weights have none")
        if self.revision is not None and self.pretrained is None and not self.is_repository:
            raise ValueError("revision is of the hub's file of pretrained; weights and random weights have none")
        if self.library != "open_clip" and self.open_clip_config is not None:
            raise ValueError(f"open_clip_config is for library: open_clip, this one is {self.library}")
        if self.library == "open_clip" and self.image_size is not None:
            raise ValueError(
                "image_size is for library: timm; with open_clip name a model of that size "
                "(python -m build.encoder --list)"
            )
        check_classifier_encoder(self)
        if len(set(self.layers)) != len(self.layers):
            raise ValueError(f"layers must differ, found {self.layers}")
        return self


_OF_STEPS = ("learning_rate", "weight_decay", "warmup_epochs", "schedule", "batch_size", "patience")
_EXACT_LOSSES = ("bce", "cross_entropy", "mse", "ab")
GRADED = ("regression", "ranking")
"""Tasks whose labels are numbers, and whose scores are."""


class Fit(_Section):
    """Settings of `training.fit`."""

    architecture: Literal["mlp", "laion-h14", "laion-aesthetic", "laion-aesthetic-relu"] = "mlp"
    """`mlp` has the `hidden_sizes`; the others have the layers of the published heads of those names."""
    hidden_sizes: list[Annotated[int, Field(ge=1)]] = []
    """The width of each hidden layer of `mlp` (ReLU and dropout after each); empty means one linear layer."""
    dropout: float = Field(default=0.2, ge=0, lt=1)
    """The share of hidden values that are left out in training."""
    input_dropout: float = Field(default=0, ge=0, lt=1)
    """The share of the embedding's values that are left out in training."""
    output_dropout: float | None = Field(default=None, ge=0, lt=1)
    """The share of the last hidden layer's values that are left out in training; by default `dropout`."""
    merge_layers: Literal["concatenate", "weighted"] = "concatenate"
    """What a head sees of an encoder's several `layers`: all of them side by side, or their sum by one learned weight
    each, which is folded into the first layer of the served head. A sum is of layers of one width."""
    loss: Loss | None = None
    """Loss; by default bce (binary, multilabel), cross_entropy (multiclass), mse (regression) or ab (ranking). For
    grades `mse` learns the value, `ab` the order of pairs of pictures, by a margin: those of the choices if there are
    some, else drawn from the grades; `nll` the value and its standard deviation, which the served head gives too."""
    class_weights: bool = False
    """Weigh classes by the inverse of their frequency (bce's pos_weight). The scores then overstate rare classes until
    they are calibrated, and rank no better."""
    optimizer: Literal["lbfgs", "adamw", "adam"] = "lbfgs"
    """`lbfgs` solves one linear layer exactly, with the weight decay of the least held-out loss. By default it does so
    for a head of one layer, unless the recipe has settings of the other two (learning_rate, weight_decay,
    warmup_epochs, schedule, batch_size, patience or input_dropout), the loss nll, or weighted layers."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """The learning rate of adamw and adam after warm-up."""
    weight_decay: float | None = Field(default=None, ge=0)
    """The weight decay: by default 1e-4 of adamw and adam, of lbfgs the one of the least held-out loss."""
    warmup_epochs: int = Field(default=0, ge=0)
    """Epochs of linear warm-up of the learning rate."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Course of the learning rate after warm-up."""
    batch_size: int = Field(default=256, ge=1)
    """Embeddings in one step."""
    max_epochs: int = Field(default=200, ge=1)
    """The most passes over the training rows, of lbfgs at each weight decay."""
    patience: int = Field(default=20, ge=1)
    """Stop after this many epochs without a better validation loss; the best epoch is kept."""
    test_fraction: float = Field(default=0.2, gt=0, lt=1)
    """Held out for the metrics, the operating points' check and nothing else."""
    validation_fraction: float = Field(default=0.15, gt=0, lt=1)
    """Share of the rows for early stopping, calibration and the choice of thresholds where there are no folds."""
    folds: int = Field(default=5, ge=0, le=20)
    """Parts of all rows but the test part, each held out once: what they show chooses the epochs, the calibration and
    the thresholds, and the final weights are fitted to all of them. Of more than 20,000 rows the validation part does
    it, and only the exact solution of lbfgs is fitted to it too. With 0 it does it and the weights never see it."""
    near_duplicate_cosine: float | None = Field(default=0.97, gt=0, le=1)
    """Embeddings at least this close share a side of the split; null looks at exact duplicates only."""
    seed: int = 0
    """The seed of the split, the first weights and the order of batches."""
    start: Literal["prompts"] | None = Field(default=None, exclude_if=_is_unset)
    """`prompts` trains one linear layer from the weights of the head's `prompts`, pulled towards them as much as
    held-out rows want (`weight_decay`, if it is given). A head with prompts and without this keeps their weights, which
    labelled pictures only calibrate."""

    @model_validator(mode="before")
    @classmethod
    def _default_optimizer(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("optimizer") is not None:
            return data
        linear = data.get("architecture", "mlp") == "mlp" and not data.get("hidden_sizes")
        stepped = [key for key in _OF_STEPS if data.get(key) is not None]
        stepped += ["input_dropout"] if data.get("input_dropout") else []
        stepped += ["loss"] if data.get("loss") not in (None, *_EXACT_LOSSES) else []
        stepped += ["merge_layers"] if data.get("merge_layers") == "weighted" else []
        return {**data, "optimizer": "lbfgs" if linear and not stepped else "adamw"}

    @model_validator(mode="after")
    def _exact_optimizer(self) -> Fit:
        if self.folds == 1:
            raise ValueError("folds must be 0 or at least 2, found 1")
        if self.optimizer == "lbfgs" and (self.hidden_sizes or self.architecture != "mlp"):
            raise ValueError("optimizer: lbfgs solves one linear layer; with hidden layers take adamw or adam")
        if self.optimizer == "lbfgs" and (self.input_dropout or self.loss == "nll" or self.merge_layers == "weighted"):
            raise ValueError(
                "optimizer: lbfgs is for no input_dropout, loss nll or merge_layers weighted; take adamw or adam"
            )
        return self


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Texts = Annotated[list[str], BeforeValidator(_as_list)]
"""One text, or several."""


class Between(_Section):
    """A range of a search, with both its ends."""

    low: float
    """The least value."""
    high: float
    """The greatest value."""

    @model_validator(mode="after")
    def _ascending(self) -> Between:
        if not self.low <= self.high:
            raise ValueError(f"low must not be above high, found {self.low} and {self.high}")
        return self


Integers = int | list[int] | Between
Numbers = float | list[float] | Between
SearchSet = Literal["train", "validation", "evaluation", "all"]
SearchMetric = Literal["spearman", "ab", "pearson", "mse", "mae", "accuracy", "auroc", "average_precision"]


class Search(_Section):
    """Settings of `training.search`: which ones it tries. Each is a value, a list of values, or a range (low, high)."""

    trials: int = Field(default=100, ge=1)
    """Heads that are trained to compare settings."""
    metric: SearchMetric | None = None
    """The figure that is the best: by default spearman of grades, auroc of two classes."""
    set: SearchSet = "validation"
    """The rows it is measured on, by weights fitted to the training part. Who searches on `evaluation`, the test part,
    can no longer tell how good the winner is."""
    sampler: Literal["tpe", "gp", "nsgaii", "random"] = "tpe"
    """Optuna's sampler, which chooses what to try next."""
    pruner: Literal["median", "halving", "hyperband", "none"] = "median"
    """Optuna's pruner, which ends trials that fall behind."""
    hidden_layers: Integers = Between(low=0, high=2)
    """Number of hidden layers."""
    hidden_size: Integers = Between(low=16, high=256)
    """Width of each hidden layer; a range is searched by its logarithm."""
    dropout: Numbers = Between(low=0, high=0.6)
    """As `fit.dropout`."""
    input_dropout: Numbers = Between(low=0, high=0.4)
    """As `fit.input_dropout`."""
    output_dropout: Numbers = Between(low=0, high=0.6)
    """As `fit.output_dropout`."""
    learning_rate: Numbers = Between(low=1e-4, high=1e-2)
    """As `fit.learning_rate`; a range is searched by its logarithm."""
    weight_decay: Numbers = Between(low=1e-5, high=1)
    """As `fit.weight_decay`; a range is searched by its logarithm."""
    warmup_epochs: Integers = Between(low=0, high=5)
    """As `fit.warmup_epochs`."""
    max_epochs: Integers = Between(low=8, high=40)
    """As `fit.max_epochs`."""
    batch_size: Integers = [128, 256, 512]
    """As `fit.batch_size`."""
    loss: Loss | list[Loss] | None = None
    """As `fit.loss`; by default all that fit a ranking or a regression, and otherwise the head's own."""

    @model_validator(mode="after")
    def _fits(self) -> Search:
        for name in ("hidden_layers", "hidden_size", "max_epochs", "batch_size", "warmup_epochs"):
            least = 1 if name in ("hidden_size", "max_epochs", "batch_size") else 0
            _check_choice(name, getattr(self, name), least, math.inf)
        for name in ("dropout", "input_dropout", "output_dropout"):
            _check_choice(name, getattr(self, name), 0, 1 - 1e-9)
        for name in ("learning_rate", "weight_decay"):
            _check_choice(name, getattr(self, name), 1e-12, math.inf)
        return self


def _check_choice(name: str, choice: Any, least: float, most: float) -> None:
    """Refuse a value, a list or a range that is empty or goes beyond what the setting can be."""
    values = (
        [choice.low, choice.high] if isinstance(choice, Between) else choice if isinstance(choice, list) else [choice]
    )
    if not values or any(not least <= value <= most for value in values):
        limits = f"at least {least:g}" if most == math.inf else f"from {least:g} to below 1"
        raise ValueError(f"search.{name} must be {limits}, found {values}")


class Published(_Section):
    """A published head that `training.import_head` imports, instead of training one."""

    name: str
    """Such as `laion-nsfw-l14`; `python -m training.import_head --list` shows them."""
    file: Path | None = None
    """A local copy, for machines without a network; its sha256 is checked all the same."""
    sha256: Sha256 | None = None
    """The sha256 of the file, for the heads whose sum is not known here; for the others it must be the known one."""
    variant: Literal["published", "float16", "numeric"] = "published"
    """Reading of the two Keras heads, whose few categorical columns are looked up in a vocabulary of float16 values:
    `published` as the original graph does (a value that is no float16 is nearly always unknown), `float16` with
    those columns rounded first, as the embeddings it was trained on were, `numeric` all left unknown."""


class Classifier(_Section):
    """The last layer of the encoder's own image classifier, which `training.import_classifier` makes the head of.

    Its classes are those of the model's config. The head's `class_names` may put them in another order: of a binary
    head the score is that of the last. `task: multilabel` takes a sigmoid of each output, the others a softmax.
    """

    combine: dict[str, Texts] = {}
    """Classes of the head made of several of the model's, whose probabilities are added: `{nsfw: [medium, high]}`. A
    binary head's other class is all that remains; each label of a multilabel one is held against all others."""


class Head(_Section):
    """One classifier on the embedding, served as the model `<name>_head`."""

    name: ModelName
    """The name of the head, of its output of image_score, and of its model `<name>_head`."""
    task: Task = "binary"
    """Meaning of a score: one probability, one of several classes, several labels that may all hold, or a value: the
    grade itself (`regression`), or what puts pictures in the right order (`ranking`)."""
    class_names: list[str]
    """Binary: what 0 and 1 mean, `[safe, nsfw]`. Multiclass: one per class. Multilabel: one per label.
    Regression and ranking: the name of the one value. With `classifier` they may be left out: those of the model."""
    thresholds: list[float] = []
    """Fixed thresholds, ascending; a score at or above one passes it. By default 0.5, and for grades the
    `accuracy_divider`."""
    accuracy_divider: Literal["median", "none"] | float = "median"
    """Of grades: pictures at or above it are good, those below bad. Accuracy is measured by it, and it is the served
    threshold where `thresholds` gives no other. `median` is that of the grades it is trained on; `none` divides
    nothing."""
    operating_points: list[str] = []
    """Instead of fixed thresholds, chosen on held-out data: `recall>=0.99`, `precision>=0.95`, `fpr<=0.001`, `f1`.
    Two of them make the bands allow, review and block."""
    calibration: Literal["platt", "temperature", "none"] = "platt"
    """Method that turns logits into probabilities, fitted on data that the head's weights never saw."""
    prevalence: float | None = Field(default=None, gt=0, lt=1)
    """Share of the positive class where the head will be used; probabilities are corrected for it."""
    published: Published | None = None
    """A published head to import instead of training one."""
    classifier: Classifier | None = Field(default=None, exclude_if=_is_unset)
    """The last layer of the encoder's own classifier, instead of training one: `classifier: {}`. The encoder is one of
    timm's or transformers' with `normalize: false`."""
    source: Path | None = None
    """Folder with head.json, such as another recipe's; by default artifacts/<recipe>/heads/<name>, where training.fit
    writes."""
    prompts: dict[str, Texts] = Field(default={}, exclude_if=_is_unset)
    """Texts of each class, instead of training data: the head compares a picture with them. A binary head's score is
    that of the second class against the first. Most towers know English alone."""
    templates: list[str] | None = Field(default=None, exclude_if=_is_unset)
    """Sentences with {} for each text of `prompts`, whose embeddings are averaged: by default a photo, a picture and an
    image `of {}.`; with `[]` the texts are taken as they are."""
    negatives: dict[str, Texts] = Field(default={}, exclude_if=_is_unset)
    """Texts that a multilabel head's label is held against; by default neutral ones, `a photo.`, and with SigLIP none
    at all, whose bias stands for them."""
    shadow: ModelName | None = None
    """Another head of the recipe, a candidate for this one's place: whenever this head scores, the candidate does
    beside it, and metrics compare the two. It is no output of `image_score`. Needs `serving: {watch: true}`."""
    fit: Fit = Fit()
    """Training of the head."""
    search: Search | None = None
    """Search of better settings than those of `fit`, by `training.search`; with its defaults where this is left out."""

    def settings(self) -> dict[str, Any]:
        """What the recipe says of the head itself, for its manifest: without how its settings were searched."""
        return self.model_dump(mode="json", exclude={"search"})

    @property
    def labels(self) -> list[str]:
        """One per score column; a binary head has one, its positive class."""
        return self.class_names[1:] if self.task == "binary" else self.class_names

    @property
    def fixed_thresholds(self) -> list[float]:
        """`thresholds`, or their default; of grades that is found in training."""
        return self.thresholds or ([] if self.is_graded else [0.5])

    @property
    def is_graded(self) -> bool:
        """True where labels and scores are numbers."""
        return self.task in GRADED

    @model_validator(mode="before")
    @classmethod
    def _classes_of_the_model(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("classifier") is not None:
            return {"class_names": [], **data}
        return data

    @model_validator(mode="after")
    def _classes(self) -> Head:
        if self.classifier is not None and not self.class_names:
            return self
        limits = {"binary": (2, 2), "multiclass": (2, 10_000), "multilabel": (1, 10_000)}
        low, high = limits.get(self.task, (1, 1))
        if not low <= len(self.class_names) <= high:
            count = str(low) if low == high else f"{low} or more"
            raise ValueError(
                f"a {self.task} head has {count} class_names, found {len(self.class_names)}: {self.class_names}"
            )
        if len({unicodedata.normalize("NFC", name).strip() for name in self.class_names}) != len(self.class_names):
            raise ValueError(f"class_names must differ, found {self.class_names}")
        if not all(name.strip() for name in self.class_names):
            raise ValueError(f"class_names must not be empty, found {self.class_names}")
        return self

    @model_validator(mode="before")
    @classmethod
    def _calibration_of_given_weights(cls, data: Any) -> Any:
        """One number for all classes, where few labels are what there is."""
        given = isinstance(data, dict) and (data.get("prompts") or data.get("classifier") is not None)
        if given and data.get("task", "binary") != "binary":
            return {"calibration": "temperature", **data}
        return data

    @model_validator(mode="after")
    def _prompts(self) -> Head:
        check_prompts(self)
        check_classifier(self)
        return self

    @model_validator(mode="after")
    def _decisions(self) -> Head:
        if self.thresholds and self.operating_points:
            raise ValueError("give thresholds or operating_points, not both")
        if self.thresholds != sorted(set(self.thresholds)):
            raise ValueError(f"thresholds must ascend, found {self.thresholds}")
        if not self.is_graded and any(not 0 < value < 1 for value in self.thresholds):
            raise ValueError(f"thresholds of probabilities lie between 0 and 1, found {self.thresholds}")
        if self.prevalence is not None and self.task != "binary":
            raise ValueError(f"prevalence is for binary heads, this one is {self.task}")
        if not self.is_graded and self.accuracy_divider != "median":
            raise ValueError(f"accuracy_divider is for regression and ranking heads, this one is {self.task}")
        return self


class Engine(_Section):
    """Settings of `build.engine`, which makes a TensorRT plan from the ONNX file; of ONNX serving only `tf32` is one.

    The plan takes 1 to `serving.max_batch_size` images. Its precision is the ONNX file's (`build.precision`).
    """

    opt_batch_size: int | None = Field(default=None, ge=1)
    """The batch that kernels are chosen for; by default the largest."""
    workspace_bytes: int = Field(default=4 * 2**30, ge=2**20)
    """GPU memory that one kernel may use for scratch."""
    tf32: bool = False
    """Let GPUs multiply fp32 numbers in TF32, with 10 bits of mantissa, which is faster; also serving ONNX on a GPU."""


MAX_IR_VERSION = 10
"""Newest IR version of an ONNX file that onnxruntime 1.19, in the oldest container promised (24.10), reads."""
MAX_OPSET = 21
"""Newest opset of the default operators that it reads."""
MIN_OPSET = 18
"""The oldest that torch's exporter writes; asked for 17, it writes 18."""

Precision = Literal["fp32", "fp16", "int8"]
Cosine = Annotated[float, Field(gt=0, le=1)]


class MinimumCosine(_Section):
    """Lowest cosine between an embedding of the model's library in torch and that of the built file, at each precision.

    The build fails, and installs nothing, when any picture of the verification is below. A server whose embedding of a
    picture of its proof is below never becomes ready.
    """

    fp32: Cosine = 0.99999
    """The limit of the exported file."""
    fp16: Cosine = 0.999
    """The limit of the file made from it for GPUs."""
    int8: Cosine = 0.995
    """The limit of the file made from it for CPUs."""
    scaled: Cosine = 0.995
    """The limit of `decode: scaled`: between embeddings of photographs decoded so and decoded exactly, their mean."""
    dali: Cosine = 0.995
    """The limit of `serving.preprocess: dali`: between embeddings of JPEGs decoded so and exactly, the lowest."""

    def at(self, precision: Precision) -> float:
        return float(getattr(self, precision))


class Build(_Section):
    """Export of ONNX files."""

    precision: Precision = "fp32"
    """The precision of the encoder that is served: fp16 for GPUs, int8 for CPUs. It is made from the fp32 file; heads
    stay fp32."""
    opset: int = 18
    """The ONNX operator set of every file, 18 to 21."""
    minimum_cosine: MinimumCosine = MinimumCosine()
    """The limits that each step is held to."""
    maximum_score_difference: float = Field(default=0.05, gt=0)
    """Largest difference between a head's score of a picture where it is served and where it was verified, relative
    to the larger of 1 and the score. A server over it on a picture of its proof never becomes ready."""
    engine: Engine = Engine()
    """Building of TensorRT plans."""

    @property
    def limit(self) -> float:
        """The minimum cosine at the precision that is served."""
        return self.minimum_cosine.at(self.precision)

    @field_validator("opset")
    @classmethod
    def _readable_opset(cls, opset: int) -> int:
        if not MIN_OPSET <= opset <= MAX_OPSET:
            raise ValueError(
                f"must be {MIN_OPSET} (the oldest that torch's exporter writes) to {MAX_OPSET} (the newest that "
                "onnxruntime 1.19 reads, in the oldest container promised, 24.10)"
            )
        return opset


_FORMATS_BY_OTHER_NAMES = {"HEIF": "HEIC", "JPG": "JPEG", "TIF": "TIFF"}


class Serving(_Section):
    """Values that `build.repository` stamps into the configs, and the limits on an input image.

    A request with the parameter `priority` 2 is bulk work: it is taken up when no other request waits, and may wait
    thirty times as long. Any other request is interactive.
    """

    max_batch_size: int = Field(default=32, ge=1, le=1024)
    """The most images in one request, and in one run of the encoder."""
    max_queue_delay_us: int = Field(default=0, ge=0)
    """Longest wait of the encoder for a fuller batch. 0 batches whatever has queued meanwhile; more needs both
    limits below to be 0."""
    queue_timeout_ms: int = Field(default=700, ge=0, le=3_600_000)
    """Longest wait of an interactive request for the preprocessing, and again for the encoder, before it is refused
    as UNAVAILABLE; it may ask for less (its `timeout`, in microseconds). The server needs as long to recover from an
    overload. 0 is no limit."""
    max_queue_size: int = Field(default=4096, ge=0, le=1_000_000)
    """Requests that may wait in each queue; the next one is UNAVAILABLE at once. A bound on memory rather than on load:
    at it Triton's batcher takes up work twice a second. 0 is no limit, and with no timeout either no priorities."""
    warmup: Literal["full", "single", "none"] = "full"
    """Inferences of each model before the server is ready: `full` a picture, then a batch of `max_batch_size`;
    `single` one picture, for a large encoder on a CPU, whose full batch takes seconds at every start; `none`
    nothing."""
    preprocess: Literal["python", "dali"] = "python"
    """Decoder of JPEGs: `python` bit by bit as in training, or `dali`, NVIDIA's DALI, for a server with a GPU: its
    pixels are near (`build.minimum_cosine.dali`), and it decodes at full size only."""
    preprocess_instances: int = Field(default=2, ge=1)
    """Python processes that decode images; about one a core. With `preprocess: dali` the threads of one, per GPU."""
    encoder_instances: int = Field(default=1, ge=1)
    """Copies of the encoder in memory (per GPU where there are several)."""
    intra_op_threads: int = Field(default=0, ge=0)
    """onnxruntime threads of one encoder instance; 0 means one a physical core."""
    max_bytes: int = Field(default=32 * 2**20, ge=1)
    """Largest encoded image, in bytes."""
    max_pixels: int = Field(default=64_000_000, ge=1)
    """Largest width × height, read from the header before decoding; also bounds the resized image."""
    formats: list[ImageFormat] = Field(default=["JPEG", "PNG", "WEBP", "GIF", "BMP"], min_length=1)
    """Decoders that are enabled, in training too; anything else is NOT_AN_IMAGE. The list is the whole one: with photos
    of phones it is `[JPEG, PNG, WEBP, GIF, BMP, HEIC]`. HEIC needs pillow-heif, in .venv and .triton: `make heic`."""
    max_frames: int = Field(default=1000, ge=1)
    """Most frames of an animation, of which only the first is scored. 1 refuses animations."""
    max_scans: int = Field(default=64, ge=1)
    """Most passes of a JPEG over the picture; progressive files have about 10."""
    watch: bool = False
    """Count every head's scores and decisions in the server's metrics, by one more step after the head. A process and
    some hundred microseconds of a core for each head; what `serving.drift` and a `shadow` need."""

    @property
    def limits_queues(self) -> bool:
        """True when a request can be refused for load; only then there are priorities."""
        return bool(self.max_queue_size or self.queue_timeout_ms)

    @field_validator("formats", mode="before")
    @classmethod
    def _names_of_formats(cls, formats: Any) -> Any:
        if not isinstance(formats, list):
            return formats
        names = [name.upper() if isinstance(name, str) else name for name in formats]
        return [_FORMATS_BY_OTHER_NAMES.get(name, name) if isinstance(name, str) else name for name in names]

    @field_validator("formats")
    @classmethod
    def _some_format_is_written(cls, formats: list[ImageFormat]) -> list[ImageFormat]:
        if set(formats) <= {"HEIC", "TIFF"}:
            raise ValueError(
                f"must have one of JPEG, PNG, WEBP, GIF, BMP or AVIF, in which the server checks itself, found "
                f"{formats}; for the usual ones as well write [JPEG, PNG, WEBP, GIF, BMP, {', '.join(formats)}]"
            )
        return formats

    @model_validator(mode="after")
    def _queue_limits(self) -> Serving:
        if self.max_queue_delay_us and self.limits_queues:
            raise ValueError(
                f"max_queue_delay_us {self.max_queue_delay_us} beside queue limits makes Triton's batcher lose ever "
                "more throughput (triton server #8870); set max_queue_size and queue_timeout_ms to 0, or leave it 0"
            )
        return self


class Recipe(_Section):
    """A deployment: one encoder, its heads, and how they are built and served."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    """The recipe's name, which is its folder under artifacts/."""
    description: str
    """One sentence for people."""
    notice: str | None = None
    """Printed wherever scores of this recipe are shown, e.g. that it is a demonstration."""
    encoder: Encoder
    """The image encoder, or several side by side."""
    heads: list[Head] = Field(min_length=1)
    """The classifiers on its embedding."""
    build: Build = Build()
    """Building of ONNX files and plans."""
    serving: Serving = Serving()
    """Inputs that the server accepts, and its use of the machine."""

    @model_validator(mode="before")
    @classmethod
    def _folder_of_finetune(cls, data: Any) -> Any:
        """Fill in what follows from `encoder.finetune`: its folder, and what its heads hold out."""
        encoder = data.get("encoder") if isinstance(data, dict) else None
        if not isinstance(encoder, dict) or not encoder.get("finetune"):
            return data
        heads = data.get("heads")
        if isinstance(heads, list):
            heads = [_on_finetuned(head) for head in heads]
        folder = f"artifacts/classifiers/{data.get('name')}"
        return {**data, "encoder": {"weights": folder, **encoder}, "heads": heads}

    @model_validator(mode="after")
    def _engine_profile(self) -> Recipe:
        opt, largest = self.build.engine.opt_batch_size, self.serving.max_batch_size
        if opt is not None and opt > largest:
            raise ValueError(f"build.engine.opt_batch_size {opt} is over serving.max_batch_size {largest}")
        return self

    @model_validator(mode="after")
    def _dali_decodes_jpegs_exactly(self) -> Recipe:
        decode, formats = self.encoder.towers[0].decode, self.serving.formats
        if self.serving.preprocess == "dali" and (decode != "exact" or "JPEG" not in formats):
            raise ValueError(
                f"serving.preprocess: dali is for JPEGs with decode: exact, found decode: {decode}, formats: {formats}"
            )
        return self

    @model_validator(mode="after")
    def _unique_heads(self) -> Recipe:
        names = [head.name for head in self.heads]
        if len(set(names)) != len(names):
            raise ValueError(f"head names must be unique, found {names}")
        reserved = [name for name in names if re.search(r"_(decision|deviation|revision|head)$", name)]
        if reserved:
            raise ValueError(f"head names may not end in _decision, _deviation, _revision or _head, found {reserved}")
        return self

    @model_validator(mode="after")
    def _texts_have_a_tower(self) -> Recipe:
        reason = why_no_texts(self.encoder)
        for head in self.heads:
            if head.prompts and reason is not None:
                raise ValueError(f"head {head.name} has prompts: {reason}")
        return self

    @model_validator(mode="after")
    def _classifiers_have_a_model(self) -> Recipe:
        reason = why_no_classifier(self.encoder)
        for head in self.heads:
            if head.classifier is not None and reason is not None:
                raise ValueError(f"head {head.name} has classifier: {reason}")
        return self

    @model_validator(mode="after")
    def _shadows(self) -> Recipe:
        heads = {head.name: head for head in self.heads}
        for head in self.heads:
            if head.shadow is None:
                continue
            shadow = heads.get(head.shadow)
            if shadow is None or shadow is head or shadow.shadow is not None:
                others = [other.name for other in self.heads if other is not head and other.shadow is None]
                raise ValueError(f"shadow of head {head.name} must be another head, {others}; found {head.shadow!r}")
            if (shadow.task, shadow.class_names) != (head.task, head.class_names):
                raise ValueError(f"head {head.name} and its shadow {shadow.name} must have one task and class_names")
            if not self.serving.watch:
                raise ValueError(f"head {head.name} has a shadow, which is compared only with serving: {{watch: true}}")
        return self

    @property
    def shadows(self) -> set[str]:
        """Names of the heads that run beside another and are no outputs of `image_score`."""
        return {head.shadow for head in self.heads if head.shadow is not None}

    def head(self, name: str | None) -> Head:
        """The head called `name`, or the only one when `name` is None."""
        names = [head.name for head in self.heads]
        if name is None and len(names) == 1:
            return self.heads[0]
        if name not in names:
            raise RecipeError(f"recipe {self.name}: head {name!r} is not one of {names}; name one with --head")
        return self.heads[names.index(name)]


def _on_finetuned(head: Any) -> Any:
    """A head with the split of its encoder's fine-tuning: nothing is held out but what that held out."""
    if not isinstance(head, dict) or not isinstance(head.get("fit", {}), dict):
        return head
    return {**head, "fit": {"folds": 0, "near_duplicate_cosine": None, **head.get("fit", {})}}


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and validate a recipe.

    Args:
        name_or_path: `demo` for recipes/demo.yaml, or the path of a YAML file.
        overrides: `key=value` each, whose value takes the place of the file's; of one key the last counts.

    Raises:
        RecipeError: the file is missing, is not YAML, or does not fit the schema.
        OverrideError: an override is no key=value, or leads to no place of the recipe.
    """
    path = _recipe_path(name_or_path)
    changes = [parse_override(text) for text in overrides]
    try:
        text = path.read_text(encoding="utf-8")
        data, written = yaml.safe_load(text), yaml.load(text, yaml.BaseLoader)  # every value as text
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not valid YAML: {error}") from error
    where = " ".join([str(path), *(f"--set {text}" for text in overrides)])
    if changes and isinstance(data, dict):
        data, written = overridden(data, written, changes)
    return parse_recipe(data, where, written)


def parse_recipe(data: object, where: str = "recipe", written: Any = None) -> Recipe:
    """Validate a recipe that is already a dict.

    Args:
        data: what the YAML says.
        where: starts each line of the error.
        written: the same with every value as text, as it was written; for the error of a value that YAML does not read
            as text.
    """
    if not isinstance(data, dict):
        raise RecipeError(f"{where}: a recipe is a mapping of keys, found {type(data).__name__}")
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        lines = list(dict.fromkeys(_explain(issue, written) for issue in error.errors()))
        raise RecipeError("\n".join(f"{where}: {line}" for line in lines)) from error


def recipe_names() -> list[str]:
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")


def _recipe_path(name_or_path: str | Path) -> Path:
    path = Path(name_or_path)
    if path.suffix in {".yaml", ".yml"}:
        if not path.is_file():
            raise RecipeError(f"{path}: no such recipe file")
        return path
    known = recipe_names()
    if str(name_or_path) not in known:
        nearest = difflib.get_close_matches(str(name_or_path), known, n=1)
        hint = f"did you mean {nearest[0]!r}? " if nearest else ""
        raise RecipeError(
            f"unknown recipe {str(name_or_path)!r}; {hint}known: {', '.join(known)}, or give a .yaml path"
        )
    return RECIPES / f"{name_or_path}.yaml"


def _explain(issue: Any, written: Any = None) -> str:
    """One line for one pydantic error: the place, the value and what to do."""
    key = ".".join(str(part) for part in issue["loc"]) or "recipe"
    if issue["type"] == "extra_forbidden":
        valid = list(_section_at(issue["loc"][:-1]).model_fields)
        nearest = difflib.get_close_matches(str(issue["loc"][-1]), valid, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"valid keys: {', '.join(valid)}"
        return f"{key}: unknown key; {hint}"
    if issue["type"] == "missing":
        return f"{key}: required, but missing"
    if issue["type"] == "string_type" and isinstance(issue["input"], (bool, int, float, datetime.date, type(None))):
        return _quoting(issue["loc"], issue["input"], written)
    return f"{key}: {issue['msg'].removeprefix('Value error, ')} (found {issue['input']!r:.80})"


def _quoting(loc: tuple[int | str, ...], value: object, written: Any) -> str:
    """How to write a text that YAML takes for something else, such as the class `no`: the line with its quotes."""
    place, name = loc, str(loc[-1])
    if isinstance(loc[-1], int):  # one of a list, of which the whole line is shown
        place, name = loc[:-1], str(loc[-2])
    text = _at(place, written)
    if written is None and place is not loc:
        line = f"- {json.dumps(str(value), ensure_ascii=False)}"
    elif isinstance(text, list) and all(isinstance(part, str) for part in text):
        line = f"{name}: [{', '.join(json.dumps(part, ensure_ascii=False) for part in text)}]"
    else:
        line = f"{name}: {json.dumps(text if isinstance(text, str) else str(value), ensure_ascii=False)}"
    key = ".".join(map(str, place))
    return f"{key}: YAML reads no, yes, on, off, null and numbers as no text; quote them: {line}"


def _at(loc: tuple[int | str, ...], data: Any) -> Any:
    """The value at a place; None where there is none."""
    for part in loc:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return None
    return data


def _section_at(loc: tuple[int | str, ...]) -> type[BaseModel]:
    """The model that owns the key at `loc`, e.g. ("heads", 0) → Head."""
    section: type[BaseModel] = Recipe
    for part in loc:
        if isinstance(part, str):
            section = section_in(section.model_fields[part].annotation) or section
    return section


def section_in(annotation: Any) -> type[BaseModel] | None:
    """The recipe section inside an annotation such as `list[Head]` or `Fit | None`."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation if issubclass(annotation, BaseModel) else None
    return next(filter(None, map(section_in, typing.get_args(annotation))), None)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m recipes.schema", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", metavar="RECIPE", help=f"one of {', '.join(recipe_names())}, or a YAML file")
    add_set_option(parser)
    arguments = parser.parse_args(argv)
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    print(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False), end="")


if __name__ == "__main__":
    sys.exit(run_step("recipes.schema", main))
