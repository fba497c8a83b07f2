"""Sets the warm-up that every model runs before the server is ready, so that the first request is fast.

The encoder and the heads run batches of zeros, `preprocess` decodes a picture from the folder `warmup/` beside its
version. The picture is drawn here, in a format that the recipe serves and within its limits, the same every time.
"""

from __future__ import annotations

import io
import math
from pathlib import Path

from PIL import Image
from tritonclient.grpc.model_config_pb2 import ModelConfig  # pyright: ignore[reportAttributeAccessIssue] (generated code)

from common.pixels import served_module
from recipes.serving_section import Serving

SAMPLES = {"full": ("single", "full"), "single": ("single",), "none": ()}
"""Names of the samples in config.pbtxt, by the recipe's `serving.warmup`."""
EDGE_PIXELS = 640
"""Edge of the picture."""
LENGTH_BYTES = 4
"""Size of the length before each element of a BYTES tensor."""


def set_warmup(config: ModelConfig, serving: Serving) -> None:
    """Keep the samples of the recipe's warm-up, in the shapes of the model's inputs."""
    samples = [sample for sample in config.model_warmup if sample.name in SAMPLES[serving.warmup]]
    del config.model_warmup[:]
    dims = {tensor.name: tensor.dims for tensor in config.input}
    for sample in samples:
        sample.batch_size = serving.max_batch_size if sample.name == "full" else 1
        for name, tensor in sample.inputs.items():
            tensor.dims[:] = dims[name]
        config.model_warmup.add().CopyFrom(sample)


def warmup_tensor(serving: Serving) -> bytes:
    """The picture as a BYTES tensor of one element, which is how Triton reads it from a file."""
    picture = draw_picture(serving)
    return len(picture).to_bytes(LENGTH_BYTES, "little") + picture


def draw_picture(serving: Serving) -> bytes:
    """An encoded square of colour gradients: a JPEG if the recipe serves them, else its first that Pillow writes."""
    format = next(name for name in ("JPEG", *serving.formats) if name in serving.formats and name != "HEIC")
    edge = min(EDGE_PIXELS, math.isqrt(serving.max_pixels))
    picture = gradient_picture(edge, format)
    while len(picture) > serving.max_bytes and edge > 1:
        edge //= 2
        picture = gradient_picture(edge, format)
    return picture


def gradient_picture(edge: int, format: str = "JPEG") -> bytes:
    """An encoded square of this edge: smooth, so that the file is small for the work of decoding it."""
    down, out = Image.linear_gradient("L"), Image.radial_gradient("L")
    across = down.transpose(Image.Transpose.ROTATE_90)
    file = io.BytesIO()
    Image.merge("RGB", [down, across, out]).resize((edge, edge)).save(file, format)
    return file.getvalue()


def warmup_file(repository: Path) -> Path:
    """The path at which Triton looks for the picture."""
    return repository / "preprocess" / "warmup" / "image"


def sample_problems(config: ModelConfig) -> list[str]:
    """Problems: samples that do not feed every input in its type and dims, so that Triton would refuse the model."""
    problems = []
    inputs = {tensor.name: (tensor.data_type, list(tensor.dims)) for tensor in config.input}
    for sample in config.model_warmup:
        fed = {name: (tensor.data_type, list(tensor.dims)) for name, tensor in sample.inputs.items()}
        if fed != inputs:
            problems.append(f"{config.name}: warm-up {sample.name!r} feeds {fed}, the inputs are {inputs}")
        if not 1 <= sample.batch_size <= config.max_batch_size:
            problems.append(
                f"{config.name}: warm-up {sample.name!r} has batch_size {sample.batch_size}, "
                f"max_batch_size is {config.max_batch_size}"
            )
    return problems


def file_problems(repository: Path, preprocess: ModelConfig) -> list[str]:
    """Problems: a picture that is missing or that the served code refuses, so that the model would not load."""
    if not preprocess.model_warmup:
        return []
    path = warmup_file(repository)
    if not path.is_file():
        return [f"{path}: not found; make it with: make engines"]
    data = path.read_bytes()
    length, picture = int.from_bytes(data[:LENGTH_BYTES], "little"), data[LENGTH_BYTES:]
    if length != len(picture):
        return [f"{path}: its first {LENGTH_BYTES} bytes promise {length}, {len(picture)} follow; run: make engines"]
    pixels = served_module()
    parameters = {key: value.string_value for key, value in preprocess.parameters.items()}
    try:
        pixels.Transform.from_parameters(parameters)(picture)
    except pixels.ImageError as error:
        return [f"{path}: preprocess refuses it ({error}); run: make engines, or set serving.warmup to none"]
    return []
