"""What a recipe's server accepts, and its use of the machine."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from recipes.section import Section

ImageFormat = Literal["JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF", "HEIC", "TIFF"]
Goal = Literal["latency", "throughput"]
_FORMATS_BY_OTHER_NAMES = {"HEIF": "HEIC", "JPG": "JPEG", "TIF": "TIFF"}


class Serving(Section):
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
    goal: Goal = "latency"
    """Decides the three numbers below where they are not given. `latency` answers one picture soonest: one encoder on
    all cores, two processes that decode. `throughput` scores the most pictures: several encoders of few threads, from
    the cores of the machine that runs `build.repository`; on a GPU two."""
    preprocess_instances: int | None = Field(default=None, ge=1)
    """Python processes that decode images: 2, for throughput one a core and at least 2. With `preprocess: dali` the
    threads of one, per GPU."""
    encoder_instances: int | None = Field(default=None, ge=1)
    """Copies of the encoder in memory (per GPU where there are several): 1, for throughput by the cores."""
    intra_op_threads: int | None = Field(default=None, ge=0)
    """onnxruntime threads of one encoder instance; 0 means one a physical core. It is 0, for throughput the cores
    divided by the encoders."""
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
