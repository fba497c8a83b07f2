"""A recipe's encoder: the image tower, its weights, and how it is fine-tuned."""

from __future__ import annotations

import re
import urllib.parse
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from recipes.classifiers import check_classifier_encoder, is_repository
from recipes.section import Section, Sha256, Url, is_unset

Decode = Literal["exact", "scaled"]


class Augment(Section):
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


class Finetune(Section):
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
    """Pictures whose perceptual hashes of 256 bits differ in so many bits at most share a side of the split: copies of
    another size, quality or brightness, not crops, which a group column can name. null looks at exact duplicates."""
    maximum_unreadable: float = Field(default=0.01, ge=0, lt=1)
    """The largest share of files that may be unreadable; they are listed and left out. Above it nothing is trained."""


class Encoder(Section):
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
    remains. A head fits only the one it was trained with; a published head is served on either."""
    finetune: Finetune | None = Field(default=None, exclude_if=is_unset)
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


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")
