"""Manifests: the JSON beside every artefact, and the comparison made wherever two artefacts meet.

`encoder.json` and `head.json` say what a file is, what it came from and what it fits. A step that
joins two artefacts compares their manifests first and refuses a mismatch with both values.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import math
import os
import platform
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError

from common.head_figures import HeadMetrics, Realised
from common.head_training import HeadTraining
from common.manifest_parts import GrowingPart, Part
from common.writing import writing
from recipes.build_section import Precision
from recipes.encoder_section import Decode
from recipes.errors import ExpectedError
from recipes.head_section import GRADED, Task

_Manifest = TypeVar("_Manifest", bound=BaseModel)


class ManifestError(ExpectedError):
    """A manifest is missing, malformed, or does not fit its neighbour."""


class Tensor(Part):
    """One input or output of an ONNX file; `dims` leaves out the batch dimension, as config.pbtxt does."""

    name: str
    dtype: Literal["UINT8", "FP32", "INT32", "INT64"]
    dims: list[int]


class Preprocessing(Part):
    """The steps from an encoded image to pixels; mean and std are applied inside the encoder graph."""

    LATER = ("crop",)

    image_size: int
    resize_mode: Literal["shortest", "longest", "squash"]
    interpolation: Literal["bicubic", "bilinear"]
    fill_color: int = 0
    resize_size: int | None = None
    """Edge that the picture is resized to before the centre crop; by default `image_size`."""
    crop: Literal["round", "floor"] = Field(default="round")
    """Start of a centre crop that leaves out an odd number of pixels: as torchvision has it, or as transformers."""
    decode: Decode = "exact"
    """`scaled` decodes large JPEGs at a fraction of their size; the views of one encoder have the same."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def id(self) -> str:
        """Equal ids produce equal pixels: `exact-shortest-bicubic-224`."""
        fill = f"-fill{self.fill_color}" if self.resize_mode == "longest" else ""
        resize = "" if self.resize_size in (None, self.image_size) else f"-resize{self.resize_size}"
        crop = "" if self.crop == "round" else f"-{self.crop}"
        return f"{self.decode}-{self.resize_mode}-{self.interpolation}-{self.image_size}{resize}{fill}{crop}"


def preprocessing_id(views: list[Preprocessing]) -> str:
    """`exact-shortest-bicubic-224`, of several views joined by `+`."""
    return "+".join(view.id for view in views)


class WeightsSource(Part):
    """The origin of an encoder's weights."""

    LATER = ("finetuned",)

    encoder: str
    """The encoder's id in the recipe."""
    file: str | None
    """Name of the checkpoint; None for random weights."""
    sha256: str | None = None
    """Sum of the checkpoint, when the recipe gives one."""
    is_file_of_tag: bool | None = None
    """False for `weights` beside `pretrained` whose sum is not that of the tag's own file: another format of it, or
    weights of one's own. None where no such sum is known, or there is nothing to compare."""
    hub: str | None = None
    """The Hugging Face repository it was taken from, if it was."""
    revision: str | None = None
    """The repository's commit, 40 hexadecimal digits."""
    finetuned: bool = False
    """True of weights that training.finetune made: no text is comparable with their embeddings, and heads hold out what
    these were trained on."""


class Parity(GrowingPart):
    """Nearness of a built file's embeddings to its reference's, on the verification's pictures."""

    pictures: float = 0
    """How many were compared; a whole number, written as 24.0."""
    cosine_min: float = math.nan
    """NaN, which passes no limit, as long as nothing was compared."""
    cosine_mean: float = math.nan
    max_abs_difference: float = math.nan
    scaled_pictures: float | None = None
    """Of an encoder with `decode: scaled`: photographs decoded at a fraction of their size, compared with the whole."""
    scaled_cosine_mean: float | None = None
    scaled_cosine_min: float | None = None

    def scaled(self) -> dict[str, float]:
        """The figures of scaled decoding, which are the same at every precision."""
        return {key: value for key, value in self.model_dump().items() if key.startswith("scaled_")}


class EncoderManifest(Part):
    """encoder.json: the exported image tower."""

    LATER = ("layer_widths", "classifier_sha256")

    kind: Literal["encoder"] = "encoder"
    id: str
    recipe: dict[str, Any]
    """The recipe's `encoder` and `build` sections that produced it, word for word."""
    weights_sha256: str
    """Sum of the tower's parameters, whatever file they came from: equal weights have equal sums."""
    source_sha256: list[str | None]
    """Sum of the weights file that the recipe gives, for each encoder."""
    onnx_sha256: str
    input: Tensor
    output: Tensor
    layer_widths: list[int] = Field(default=[])
    """Widths of the layers that lie side by side in the embedding; empty where it is a single output."""
    preprocessing: list[Preprocessing]
    """Views of a picture, one below another in `pixels`; a single view unless several encoders differ in it."""
    normalize: bool
    precision: Precision
    made_from: str | None = None
    """`onnx_sha256` of the fp32 file that this one was made from; None for that file itself."""
    sources: list[WeightsSource] = Field(default=[])
    """The origin of each encoder's weights."""
    classifier_sha256: str | None = Field(default=None)
    """Sum of classifier.safetensors, the last layer of the image classifier that the encoder is of; None of others."""
    parity: Parity
    """The build's check against the model's library, or against its embeddings."""
    cpu: str | None = None
    """The CPU that the check ran on, with its instruction sets."""
    versions: dict[str, str]

    @property
    def embed_dim(self) -> int:
        return self.output.dims[0]

    def fingerprint(self) -> EncoderFingerprint:
        return EncoderFingerprint(
            id=self.id,
            weights_sha256=self.weights_sha256,
            preprocessing=preprocessing_id(self.preprocessing),
            normalize=self.normalize,
            embed_dim=self.embed_dim,
        )


class EncoderFingerprint(Part):
    """Facts that an embedding, the head trained on it and the served encoder must agree on."""

    id: str
    weights_sha256: str | None
    """Sum of the weights; None for a published head, whose authors named the encoder (`id`) but not its sum."""
    preprocessing: str
    normalize: bool
    embed_dim: int


class BatchProfile(Part):
    """Batch sizes of a plan's one optimization profile: it takes min to max, and is fastest at opt."""

    min_batch_size: int
    opt_batch_size: int
    max_batch_size: int


class EngineManifest(Part):
    """engine.json: a TensorRT plan, which fits one TensorRT version and one compute capability."""

    kind: Literal["engine"] = "engine"
    encoder: EncoderFingerprint
    onnx_sha256: str
    """Sum of the model.onnx that the plan was built from."""
    plan_sha256: str
    tensorrt: str
    """The full version, such as 10.16.1.11."""
    gpu: str
    """The name of the GPU that chose the kernels."""
    compute_capability: str
    """Such as 9.0."""
    profile: BatchProfile
    workspace_bytes: int
    precision: str
    """The ONNX file's; the network is strongly typed."""
    tf32: bool = True
    """Products of fp32 may be computed in TF32; so they were in plans whose manifest does not say."""
    input: Tensor
    output: Tensor
    parity: Parity
    """The build's check against onnxruntime."""
    versions: dict[str, str]


class Linear(Part):
    """`y = x @ weight.T + bias`; names of tensors in head.safetensors, weight (out, in), bias (out,)."""

    type: Literal["linear"] = "linear"
    weight: str
    bias: str


class Standardize(Part):
    """`y = (x - mean) / std`; names of tensors in head.safetensors, each (embed_dim,)."""

    type: Literal["standardize"] = "standardize"
    mean: str
    std: str


class RankLookup(Part):
    """Some columns replaced by a rank: `y[:, c]` is the rank of the interval that holds `x[:, c]`, or 0.

    The intervals of the columns follow one another in `low`, `high` and `ranks`, each (N,) float32; both
    ends belong to an interval, and within a column they are disjoint and ascend. No interval, no rank:
    a column of length 0 is always 0. Only the first layer may be one.
    """

    type: Literal["rank_lookup"] = "rank_lookup"
    columns: list[int]
    lengths: list[int]
    low: str
    high: str
    ranks: str


class LogSumExp(Part):
    """Logits of classes that are made of several: `y[:, g]` is the log of the sum of exp(x) over group g's columns.

    A softmax of the groups' logits is the sum of its members' softmax. A column may be in several groups.
    """

    type: Literal["log_sum_exp"] = "log_sum_exp"
    groups: list[Annotated[list[int], Field(min_length=1)]] = Field(min_length=1)


class Relu(Part):
    type: Literal["relu"] = "relu"


class Dropout(Part):
    """Active in training only; the exported graph leaves it out."""

    type: Literal["dropout"] = "dropout"
    p: float


Layer = Annotated[Linear | Standardize | RankLookup | LogSumExp | Relu | Dropout, Field(discriminator="type")]


class Threshold(Part):
    """A score at or above `value` passes it."""

    value: float
    operating_point: str
    """The rule that chose the value, e.g. `fixed` or `recall>=0.99`."""
    realised: Realised | None = None
    """Its figures on the test split; None for a fixed one of grades, and for a published head."""


class Calibration(Part):
    """Applied to the logits before the activation: `logit * scale + offset`, one value per label."""

    method: Literal["platt", "temperature"]
    scale: list[float]
    offset: list[float]


class Prevalence(Part):
    """Shares of the positive class; the logit is shifted by the difference of their log-odds."""

    training: float
    target: float


class ScoreDistribution(Part):
    """Distribution of a head's scores on held-out data; served scores are compared with it to see a drift."""

    images: int
    edges: list[float]
    """Upper edges of the histogram's bins, ascending; a last bin takes what is above."""
    ratios: list[list[float]]
    """Share of scores at or below each edge, for each label."""


_DECIDING = ("name", "encoder", "labels", "layers", "activation", "calibration", "prevalence", "weights_sha256")


class HeadManifest(Part):
    """head.json: one classifier on the embedding. Weights lie beside it in head.safetensors."""

    LATER = ("deviation",)

    kind: Literal["head"] = "head"
    name: str
    recipe: dict[str, Any]
    """The recipe's entry in `heads` that produced it, word for word."""
    made_by: str | None = None
    """Name of the recipe that made it; None of a head that no recipe names, or of one made before this was kept."""
    notice: str | None = None
    licence: str | None = None
    task: Task = "binary"
    encoder: EncoderFingerprint
    labels: list[str] = Field(min_length=1)
    """One per score column. A binary head has one: its positive class."""
    class_names: list[str] = Field(min_length=1)
    layers: list[Layer]
    activation: Literal["sigmoid", "softmax", "none"]
    calibrated: bool
    """True when a score is a probability that was calibrated on held-out data."""
    calibration: Calibration | None = None
    prevalence: Prevalence | None = None
    deviation: bool = False
    """True when the layers end in two values for the one label: the score and the logarithm of its standard deviation,
    which is served as an output of its own."""
    thresholds: list[list[Threshold]]
    """Thresholds of each label, ascending; `decision` counts how many of them the score passed."""
    weights_sha256: str
    metrics: HeadMetrics
    """Figures on the test split; none for a published head."""
    score_distribution: ScoreDistribution | None = None
    """Scores on the validation and test splits, which the weights never saw; a published head has none."""
    training: HeadTraining
    versions: dict[str, str]

    @property
    def is_graded(self) -> bool:
        """True where scores are numbers of the labels' own kind, and no shares."""
        return self.task in GRADED

    @property
    def revision(self) -> int:
        """63 bits of the hash of all that decides a score, served as a constant with every score."""
        deciding = self.model_dump(mode="json", include=set(_DECIDING))
        deciding["thresholds"] = [[point.value for point in row] for row in self.thresholds]
        text = json.dumps(deciding, sort_keys=True, separators=(",", ":"))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def compare_fingerprints(head: HeadManifest, encoder: EncoderManifest) -> None:
    """Refuse to serve a head on an encoder it was not trained on.

    Raises:
        ManifestError: naming each differing field with both values.
    """
    trained_on = head.encoder.model_dump()
    served_by = encoder.fingerprint().model_dump()
    unknown_weights = head.encoder.weights_sha256 is None  # then the encoder's name must do
    differing = [
        f"{key}: the head was trained on {trained_on[key]!r}, the encoder is {served_by[key]!r}"
        for key in trained_on
        if key != ("weights_sha256" if unknown_weights else "id") and trained_on[key] != served_by[key]
    ]
    if differing:
        raise ManifestError(
            f"head {head.name!r} (trained on encoder {head.encoder.id}) does not fit encoder {encoder.id}:\n  "
            + "\n  ".join(differing)
            + "\nTrain the head again on this encoder, or name the encoder it was trained on in the recipe."
        )


def read_encoder(folder: Path) -> EncoderManifest:
    return _read(EncoderManifest, folder / "encoder.json", "python -m build.encoder --recipe RECIPE")


def read_head(folder: Path) -> HeadManifest:
    return _read(HeadManifest, folder / "head.json", "python -m training.fit --recipe RECIPE")


def head_weights(manifest: HeadManifest, folder: Path) -> Path:
    """head.safetensors beside head.json, refused when it is not the file the manifest was written for."""
    path = folder / "head.safetensors"
    if not path.is_file():
        raise ManifestError(f"{path}: not found, though head.json is there; train or import the head again")
    actual = sha256_of(path)
    if actual != manifest.weights_sha256:
        raise ManifestError(
            f"{path}: sha256 is {actual}, head.json says {manifest.weights_sha256}; train or import the head again"
        )
    return path


def read_engine(path: Path) -> EngineManifest:
    return _read(EngineManifest, path, "make engines TARGET=tensorrt")


def write_manifest(manifest: BaseModel, path: Path) -> None:
    write_atomically(path, (manifest.model_dump_json(indent=2) + "\n").encode())


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a full disk, never leaves it half-written.

    Raises:
        OSError: of `common.writing`, which says what to do.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_bytes(data)
            partial.replace(path)
        finally:
            with contextlib.suppress(OSError):  # the error that matters is the first
                partial.unlink(missing_ok=True)


def sha256_of(*paths: Path) -> str:
    """Hash a file, or several files one after another."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def onnx_files(path: Path) -> list[Path]:
    """model.onnx, and the file beside it that holds the weights when they are over 2 GB."""
    data = path.with_name(f"{path.name}.data")
    return [path, data] if data.is_file() else [path]


def tool_versions(*distributions: str) -> dict[str, str]:
    """Versions of Python and of the named distributions, for a manifest."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in distributions}


def _read(manifest: type[_Manifest], path: Path, maker: str) -> _Manifest:
    try:
        return manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise ManifestError(f"{path}: not found; make it with: {maker}") from error
    except ValidationError as error:
        fields = "; ".join(f"{'.'.join(map(str, issue['loc']))}: {issue['msg']}" for issue in error.errors())
        raise ManifestError(f"{path}: not a valid manifest ({fields}); make it again with: {maker}") from error
