"""The DALI pipelines of a recipe with `serving: {preprocess: dali}`: JPEG files → the squares that its views see.

`cpu.dali` decodes on the CPU. `mixed.dali`, made on a machine with a GPU, decodes with nvJPEG and resizes on the GPU.
The settings nearest to Pillow were chosen by measurement (`build.dali_parity`): a cubic filter that widens with the
reduction, libjpeg's smooth chroma. Sizes and corners are inputs, so that only `clip_pixels` rounds as torchvision does.
"""

from __future__ import annotations

import hashlib
import importlib
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from build.errors import BuildError
from common.gpu import find_machine
from common.manifest import ManifestError, Preprocessing, preprocessing_id, write_atomically, write_manifest
from common.paths import ROOT
from common.pixels import import_served, served_module

CODE = ROOT / "serving" / "preprocess_dali"
Device = Literal["cpu", "mixed"]
"""DALI's own words: `mixed` takes files on the CPU and leaves pixels on the GPU."""


class DaliError(BuildError):
    """The pipelines cannot be made here."""


class DaliManifest(BaseModel):
    """dali.json: the serialised pipelines beside it, which fit one version of DALI."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["dali"] = "dali"
    preprocessing: str
    """Id of the preprocessing whose views they cut."""
    max_batch_size: int
    sha256: dict[str, str]
    """Sums of the pipelines, by file name."""
    versions: dict[str, str]


def devices() -> list[Device]:
    """The devices that pipelines can be made for on this machine."""
    return ["cpu", "mixed"] if find_machine().gpus else ["cpu"]


def write_pipelines(views: list[Preprocessing], max_batch_size: int, folder: Path) -> DaliManifest:
    """Serialise the pipelines that this machine can make into `folder`, with dali.json.

    Raises:
        DaliError: DALI is not installed.
    """
    files = {f"{device}.dali": serialize(views, max_batch_size, device) for device in devices()}
    manifest = DaliManifest(
        preprocessing=preprocessing_id(views),
        max_batch_size=max_batch_size,
        sha256={name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
        versions={"dali": import_dali().__version__},
    )
    for name, data in files.items():
        write_atomically(folder / name, data)
    write_manifest(manifest, folder / "dali.json")
    return manifest


def serialize(views: list[Preprocessing], max_batch_size: int, device: Device) -> bytes:
    """The pipeline as `dali_decoder.DaliDecoder` loads it."""
    dali, names = import_dali(), decoder_module()
    pipeline = dali.Pipeline(
        batch_size=max_batch_size,
        num_threads=1,  # the decoder's own number replaces it
        device_id=None if device == "cpu" else 0,
        prefetch_queue_depth=1,
        exec_pipelined=False,
        exec_async=False,
    )
    with pipeline:
        files = dali.fn.external_source(name=names.FILES, dtype=dali.types.UINT8, ndim=1)
        images = dali.fn.decoders.image(
            files,
            device=device,
            output_type=dali.types.RGB,
            adjust_orientation=False,  # the square is turned at the end
            jpeg_fancy_upsampling=True,
            use_fast_idct=False,
        )
        pipeline.set_outputs(*(_square(dali, images, number, view) for number, view in enumerate(views)))
    return pipeline.serialize()


def _square(dali: Any, images: Any, number: int, view: Preprocessing) -> Any:
    """Resize (H, W, 3) uint8 pictures to the size that is fed, and cut or pad them at the corner to (S, S, 3)."""
    names, types = decoder_module(), dali.types
    size = dali.fn.external_source(name=names.size_input(number), dtype=types.FLOAT, ndim=1)
    corner = dali.fn.external_source(name=names.corner_input(number), dtype=types.INT32, ndim=1)
    filters = {"bicubic": types.INTERP_CUBIC, "bilinear": types.INTERP_LINEAR}
    resized = dali.fn.resize(images, size=size, interp_type=filters[view.interpolation], antialias=True)
    return dali.fn.slice(
        resized,
        start=corner,
        shape=[view.image_size, view.image_size],
        axes=[0, 1],
        out_of_bounds_policy="pad",
        fill_values=[float(view.fill_color)],
    )


def read_dali(folder: Path) -> DaliManifest:
    """Read dali.json; ManifestError when it is missing or malformed."""
    path = folder / "dali.json"
    try:
        return DaliManifest.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError) as error:
        raise ManifestError(f"{path}: missing, or not a valid manifest; run: make engines") from error


def import_dali() -> Any:
    """The package nvidia.dali.

    Raises:
        DaliError: it is not installed.
    """
    try:
        return importlib.import_module("nvidia.dali")
    except ImportError as error:
        raise DaliError(
            f"serving.preprocess: dali needs the extra `dali`, the package nvidia-dali-cuda120, which works without a "
            f"GPU too ({error}); install it (0.4 GB), or use preprocess: python"
        ) from error


def decoder_module() -> ModuleType:
    """serving/preprocess_dali/dali_decoder.py, as Triton will run it; it imports DALI when it decodes."""
    batches_module()
    return import_served("dali_decoder", CODE)


def batches_module() -> ModuleType:
    """serving/preprocess_dali/dali_batches.py, with what it imports."""
    served_module()
    for name in ("metric_counters", "image_counts"):
        import_served(name)
    return import_served("dali_batches", CODE)
