"""Chooses what the encoder is served as: its ONNX file, or a TensorRT plan that is built for this machine's GPU.

    python -m build.engine --recipe nsfw-vit-l-14 --target auto

Writes artifacts/encoders/<id>/engines/<compute capability>/model.plan and engine.json, after the plan has embedded
real photographs as onnxruntime does. `auto` takes TensorRT on a machine that has it and a GPU, and ONNX elsewhere; it
prints which and why. `tensorrt` stops with an error where no plan can be built, and never serves something else in
silence. Without --recipe it only prints its choice. Heads are always served as ONNX.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from build.builder_thread import leave, run_in_thread
from common.gpu import Gpu, Machine, comparable_version, find_machine
from common.manifest import (
    BatchProfile,
    EncoderManifest,
    EngineManifest,
    ManifestError,
    Parity,
    onnx_files,
    read_encoder,
    read_engine,
    sha256_of,
    tool_versions,
    write_manifest,
)
from common.paths import ARTIFACTS, encoder_folder
from common.writing import check_writable, writing
from recipes.arguments import RECIPE_HELP, add_recipe_options, recipe_if_any
from recipes.encoder_section import slug
from recipes.errors import ExpectedError, run_step
from recipes.schema import Recipe

if TYPE_CHECKING:
    from build.tensorrt_plan import PlanSpec

TARGETS = ("auto", "onnx", "tensorrt")
TENSORRT_VERSIONS = ((10, 12), (12, 0))  # from, and before
TENSORRT_MODULES = ("tensorrt", "tensorrt_bindings")  # the second is what the bindings' wheel alone installs
REMEDY = (
    "Build inside the serving container, which has TensorRT: "
    "docker compose -f serving/container/compose.yaml run --rm engines. "
    "Or, beside an NVIDIA driver: pip install 'tensorrt>=10.12,<12', in the version of the server that will load "
    "the plan. TARGET=onnx needs neither and is served on CPUs and NVIDIA GPUs."
)

NO_FP16_ON_CPUS = (
    "fp16 is for GPUs; most CPUs have no arithmetic for it and convert to fp32 and back. Take build.precision fp32, or "
    "int8, which is made for CPUs. TARGET=onnx builds the fp16 file all the same, for a server with a GPU elsewhere."
)

CheckPlan = Callable[[ModuleType, Path, "PlanSpec"], Parity]


class EngineError(ExpectedError):
    """The requested engine cannot be built on this machine."""


@dataclass(frozen=True)
class Choice:
    """A target, `onnx` or `tensorrt`, with the reason."""

    target: str
    reason: str


@dataclass(frozen=True)
class Toolchain:
    """The machine, with TensorRT's Python module or the reason why there is none."""

    machine: Machine
    tensorrt: ModuleType | None = None
    problem: str = ""


def find_toolchain() -> Toolchain:
    trt, problem = import_tensorrt()
    return Toolchain(find_machine(), trt, problem)


def import_tensorrt() -> tuple[ModuleType | None, str]:
    """TensorRT's module, or None and the reason."""
    problem = ""
    for name in TENSORRT_MODULES:
        try:
            return importlib.import_module(name), ""
        except ImportError as error:  # the package is missing, or its libraries are
            problem = problem or str(error)
    return None, problem


def choose_target(target: str, toolchain: Toolchain, precision: str = "fp32") -> Choice:
    """Resolve `auto`, for an encoder whose ONNX file has this precision.

    Raises:
        EngineError: `target` is tensorrt and no plan can be built here, or an fp16 encoder would be served by
            this machine's CPU; with the remedy.
    """
    if target == "onnx":
        return Choice("onnx", "requested")
    problems = obstacles(toolchain, precision)
    if problems and target == "tensorrt":
        raise EngineError(f"TARGET=tensorrt: {'; '.join(problems)}. {REMEDY}")
    if problems and precision == "fp16" and not toolchain.machine.gpus:
        raise EngineError(f"build.precision fp16, and {problems[-1]}. {NO_FP16_ON_CPUS}")
    if problems:
        return Choice("onnx", "; ".join(problems))
    assert toolchain.tensorrt is not None
    gpu = toolchain.machine.gpus[0]
    return Choice("tensorrt", f"TensorRT {toolchain.tensorrt.__version__} on {gpu.name}, {gpu.compute_capability}")


def obstacles(toolchain: Toolchain, precision: str) -> list[str]:
    """Everything that keeps a plan from being built on this machine."""
    problems = []
    machine, trt = toolchain.machine, toolchain.tensorrt
    if precision == "int8":
        problems.append("build.precision int8 is made for CPUs; for TensorRT take fp16")
    if trt is None:
        problems.append(f"the Python package tensorrt cannot be imported ({toolchain.problem})")
    else:
        version = comparable_version(trt.__version__)
        first, end = (".".join(map(str, numbers)) for numbers in TENSORRT_VERSIONS)
        if not TENSORRT_VERSIONS[0] <= tuple(map(int, version.split("."))) < TENSORRT_VERSIONS[1]:
            problems.append(f"TensorRT {version} is not supported, it has to be at least {first} and below {end}")
        if machine.tensorrt is not None and comparable_version(machine.tensorrt) != version:
            problems.append(f"Python's TensorRT is {version}, but a server here loads {machine.tensorrt}")
    if not machine.gpus:
        problems.append(f"no NVIDIA GPU was found ({machine.gpu_problem})")
    return problems


def engine_folder(encoder: Path, compute_capability: str) -> Path:
    """The folder of the plan for one kind of GPU, under the folder of its encoder."""
    return encoder / "engines" / compute_capability


def timing_cache_path(tensorrt: str, gpu: Gpu) -> Path:
    """The timing cache of one TensorRT and GPU, shared by all encoders so that layers of one kind are timed once."""
    return ARTIFACTS / "timing_caches" / f"{slug(f'tensorrt-{tensorrt}-{gpu.name}-{gpu.compute_capability}')}.cache"


def plan_spec(recipe: Recipe, encoder: EncoderManifest, onnx_path: Path) -> PlanSpec:
    from build.tensorrt_plan import PlanSpec

    largest, engine = recipe.serving.max_batch_size, recipe.build.engine
    profile = BatchProfile(min_batch_size=1, opt_batch_size=engine.opt_batch_size or largest, max_batch_size=largest)
    return PlanSpec(onnx_path, encoder.input, encoder.output, profile, engine.workspace_bytes, engine.tf32)


def describe(encoder: EncoderManifest, spec: PlanSpec, tensorrt: str, gpu: Gpu) -> EngineManifest:
    """The manifest of a plan before it is built: without its sum and without figures."""
    return EngineManifest(
        encoder=encoder.fingerprint(),
        onnx_sha256=encoder.onnx_sha256,
        plan_sha256="",
        tensorrt=tensorrt,
        gpu=gpu.name,
        compute_capability=gpu.compute_capability,
        profile=spec.profile,
        workspace_bytes=spec.workspace_bytes,
        precision=encoder.precision,
        tf32=spec.tf32,
        input=encoder.input,
        output=encoder.output,
        parity=Parity(),
        versions=tool_versions("onnx", "onnxruntime"),
    )


def up_to_date(expected: EngineManifest, folder: Path, minimum_cosine: float) -> EngineManifest | None:
    """The manifest in `folder` if building again would make the same plan and it passed this limit, else None."""
    try:
        manifest = read_engine(folder / "engine.json")
    except ManifestError:
        return None
    plan = folder / "model.plan"
    unchecked = {"plan_sha256": "", "parity": expected.parity, "versions": expected.versions}
    same = (
        manifest.model_copy(update=unchecked) == expected
        and manifest.parity.cosine_min >= minimum_cosine
        and plan.is_file()
        and sha256_of(plan) == manifest.plan_sha256
    )
    return manifest if same else None


def build_engine(recipe: Recipe, folder: Path, trt: ModuleType, gpu: Gpu, check: CheckPlan) -> tuple[Path, bool]:
    """Build, check and install the plan for the encoder in `folder`.

    Returns:
        The plan's folder, and whether it was built now.

    Raises:
        ManifestError: the encoder is missing.
        PlanError: TensorRT builds no plan, or it does not compute what the ONNX file does.
    """
    from build.tensorrt_plan import Progress, build_plan

    encoder = read_encoder(folder)
    spec = plan_spec(recipe, encoder, folder / "model.onnx")
    tensorrt = comparable_version(trt.__version__)
    expected = describe(encoder, spec, tensorrt, gpu)
    target = engine_folder(folder, gpu.compute_capability)
    if up_to_date(expected, target, recipe.build.limit):
        return target, False
    if sha256_of(*onnx_files(spec.onnx_path)) != encoder.onnx_sha256:
        raise ManifestError(f"{spec.onnx_path}: not the file of its encoder.json; make it again with: make encoder")
    check_writable(target)
    target.mkdir(parents=True, exist_ok=True)
    progress = Progress(report=lambda line: print(f"tensorrt: {line}", file=sys.stderr))
    with tempfile.TemporaryDirectory(dir=target, prefix=".partial-") as partial:
        path = Path(partial) / "model.plan"
        plan = run_in_thread(lambda: build_plan(trt, spec, timing_cache_path(tensorrt, gpu), progress), progress)
        with writing(path):
            path.write_bytes(plan)
        parity = check(trt, path, spec)
        manifest = expected.model_copy(update={"plan_sha256": sha256_of(path), "parity": parity})
        (target / "engine.json").unlink(missing_ok=True)  # never a manifest beside another build's plan
        for file in Path(partial).iterdir():  # the plan, and the embeddings that the check left beside it
            file.replace(target / file.name)
    write_manifest(manifest, target / "engine.json")
    return target, True


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m build.engine", description=(__doc__ or "").splitlines()[0])
    add_recipe_options(parser, required=False, help=f"{RECIPE_HELP}; without it nothing is built")
    parser.add_argument("--target", choices=TARGETS, default="auto")
    arguments = parser.parse_args(argv)
    recipe = recipe_if_any(arguments)
    folder = None if recipe is None else encoder_folder(recipe)
    precision = "fp32" if folder is None else read_encoder(folder).precision
    toolchain = Toolchain(Machine()) if arguments.target == "onnx" else find_toolchain()
    choice = choose_target(arguments.target, toolchain, precision)
    print(f"engine: {choice.target} ({choice.reason})", file=sys.stderr)
    if choice.target == "tensorrt" and recipe is not None and folder is not None:
        _build(recipe, folder, toolchain)
    print(choice.target)


def _build(recipe: Recipe, folder: Path, toolchain: Toolchain) -> None:
    from build.engine_parity import plan_checker
    from build.tensorrt_plan import PlanError

    assert toolchain.tensorrt is not None
    try:
        target, built = build_engine(
            recipe, folder, toolchain.tensorrt, toolchain.machine.gpus[0], plan_checker(recipe, read_encoder(folder))
        )
    except PlanError as error:
        raise EngineError(f"{error}\nTARGET=onnx serves the same file without TensorRT.") from error
    print(f"engine: {target / 'model.plan'} {'built' if built else 'is up to date'}", file=sys.stderr)


if __name__ == "__main__":
    leave(run_step("build.engine", main, "stopped; nothing was installed"))
