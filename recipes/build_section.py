"""How a recipe's ONNX files and plans are built."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from recipes.section import Section


class Engine(Section):
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


class MinimumCosine(Section):
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


class Build(Section):
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
