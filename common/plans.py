"""TensorRT plans in a model repository: how their files are called, and whether they fit this machine.

A plan fits one TensorRT version and the GPUs of one compute capability, and TensorRT finds out only when it
loads it. This check reads the manifest beside the plan instead, and names the remedy.
"""

from __future__ import annotations

import re
from pathlib import Path

from common.gpu import Gpu, Machine, comparable_version, find_machine
from common.manifest import EncoderManifest, EngineManifest, ManifestError, read_encoder, read_engine, sha256_of

REMEDY = "build it again where it is served (make engines TARGET=tensorrt in the serving container), or TARGET=onnx"


def plan_name(compute_capability: str | None = None) -> str:
    """`model.plan`, the name Triton looks for, or `model_9.0.plan` where plans of several GPUs lie side by side."""
    return "model.plan" if compute_capability is None else f"model_{compute_capability}.plan"


def manifest_path(plan: Path) -> Path:
    """engine.json beside model.plan, engine_9.0.json beside model_9.0.plan."""
    return plan.with_name(plan.stem.replace("model", "engine", 1) + ".json")


def find_plans(version: Path) -> list[Path]:
    """The plans in a model's version folder."""
    return sorted(version.glob("model*.plan"))


def cc_model_filenames(names: list[str]) -> dict[str, str]:
    """Triton's map from compute capability to file name: `{"9.0": "model_9.0.plan"}`; empty for a plain model.plan."""
    matches = (re.fullmatch(r"model_(\d+\.\d+)\.plan", name) for name in names)
    return {match[1]: match[0] for match in matches if match}


def repository_problems(repository: Path, machine: Machine | None = None) -> list[str]:
    """List why plans in a model repository cannot be served on this machine; empty when they can, or there are none."""
    problems = []
    for version in sorted({plan.parent for plan in repository.glob("*/*/model*.plan")}):
        machine = machine or find_machine()
        problems += plan_problems(version, machine)
    return problems


def plan_problems(version: Path, machine: Machine) -> list[str]:
    """Reasons why the plans of one model cannot be served on `machine`, one line each with the remedy."""
    plans = find_plans(version)
    try:
        encoder = read_encoder(version)
        engines = [read_engine(manifest_path(plan)) for plan in plans]
    except ManifestError as error:
        return [str(error)]
    problems = []
    for plan, engine in zip(plans, engines, strict=True):
        problems += [f"{plan}: {problem}; {REMEDY}" for problem in _mismatches(plan, engine, encoder, machine)]
    if not machine.gpus:
        return [*problems, f"{version}: TensorRT plans need an NVIDIA GPU ({machine.gpu_problem}); {REMEDY}"]
    there = {engine.compute_capability for engine in engines}
    for gpu in unserved(machine, there):
        problems.append(
            f"{version}: no plan for {gpu.name} (compute capability {gpu.compute_capability}), "
            f"only for {', '.join(sorted(there))}; {REMEDY}"
        )
    return problems


def fits(engine: EngineManifest, encoder: EncoderManifest, machine: Machine) -> bool:
    """Check that a plan of this encoder suits servers with this machine's TensorRT, on any GPU."""
    return not _stale(engine, encoder) and not _wrong_tensorrt(engine, machine)


def unserved(machine: Machine, capabilities: set[str]) -> list[Gpu]:
    """One GPU of each compute capability that no plan is for: Triton puts an instance on every GPU it sees."""
    missing = {gpu.compute_capability: gpu for gpu in machine.gpus if gpu.compute_capability not in capabilities}
    return list(missing.values())


def _mismatches(plan: Path, engine: EngineManifest, encoder: EncoderManifest, machine: Machine) -> list[str]:
    mismatches = [*_stale(engine, encoder), *_wrong_tensorrt(engine, machine)]
    named_for = cc_model_filenames([plan.name])
    if named_for and engine.compute_capability not in named_for:
        mismatches.append(f"its manifest is for compute capability {engine.compute_capability}")
    if (sha256 := sha256_of(plan)) != engine.plan_sha256:
        mismatches.append(f"sha256 is {sha256}, {manifest_path(plan).name} says {engine.plan_sha256}")
    return mismatches


def _stale(engine: EngineManifest, encoder: EncoderManifest) -> list[str]:
    """The plan was built from another ONNX file than the encoder's (or from other weights beside that file)."""
    built_from, now = engine.onnx_sha256, encoder.onnx_sha256
    if built_from != now:
        return [f"built from an ONNX file with sha256 {built_from}, the encoder's is {now}"]
    if engine.encoder != encoder.fingerprint():
        return [f"built from encoder {engine.encoder.id} with other weights or preprocessing than {encoder.id}"]
    return []


def _wrong_tensorrt(engine: EngineManifest, machine: Machine) -> list[str]:
    if machine.tensorrt is None:
        return [f"built by TensorRT {engine.tensorrt}, and none is found here"]
    if comparable_version(engine.tensorrt) != comparable_version(machine.tensorrt):
        return [f"built by TensorRT {engine.tensorrt}, here is {machine.tensorrt}"]
    return []
