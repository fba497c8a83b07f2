"""Checks an installed model repository without starting Triton.

Every config parses, agrees with the manifest and the ONNX file beside it, and the ensembles are
wired: each tensor that a step takes is made before it with the same type and dims.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig  # pyright: ignore[reportAttributeAccessIssue] (generated code)

from build.dali_variant import variant_problems
from build.repository_queues import queue_problems
from build.repository_warmup import file_problems, sample_problems
from common.gpu import Machine
from common.head_parameters import head_parameters
from common.manifest import (
    EncoderManifest,
    HeadManifest,
    ManifestError,
    compare_fingerprints,
    onnx_files,
    read_encoder,
    read_engine,
    read_head,
    sha256_of,
)
from common.model_config import ConfigError, read_config
from common.plans import cc_model_filenames, find_plans, manifest_path, repository_problems
from common.proof_file import proof_path, proof_problems, read_proof
from common.score_watch.steps import code_problems
from common.served_versions import installed_versions, served_versions
from recipes.errors import ExpectedError

ONNX_TYPES = {
    "TYPE_UINT8": onnx.TensorProto.UINT8,
    "TYPE_FP32": onnx.TensorProto.FLOAT,
    "TYPE_INT32": onnx.TensorProto.INT32,
    "TYPE_INT64": onnx.TensorProto.INT64,
}


class RepositoryError(ExpectedError):
    """The model repository differs from the recipe."""


def check(repository: Path, machine: Machine | None = None) -> list[str]:
    """Every problem found, one line each; empty when Triton can serve the repository on this `machine`."""
    problems = check_texts(repository)
    if problems:
        return problems
    configs = _read_configs(repository)[0]
    for folder, config in configs.items():
        problems += _check_versions(repository / folder, config)
        if config.platform != "ensemble" and config.backend != "python":
            problems += _check_model_file(served_folder(repository / folder, config), config)
    problems += file_problems(repository, configs["preprocess"])
    problems += variant_problems(repository, configs["preprocess"])
    problems += code_problems(repository) + _check_manifests(repository) + _check_proof(repository, configs)
    return problems + repository_problems(repository, machine)


def served_folder(model: Path, config: ModelConfig) -> Path:
    """The version of a model that Triton serves; the first, which an installation makes, if there is none yet."""
    return model / str((served_versions(model, config) or [1])[-1])


def _check_versions(model: Path, config: ModelConfig) -> list[str]:
    """Check that Triton serves one version of a model: only one is checked and proved."""
    installed, served = installed_versions(model), served_versions(model, config)
    if len(served) == 1 or not installed:  # a model that is not installed is reported with the file it lacks
        return []
    which = f"serves the versions {served}" if served else f"serves none of the versions that are there, {installed}"
    return [f"{model.name}/config.pbtxt: {which}; name one in version_policy: {{ specific: {{ versions: [ … ] }} }}"]


def check_texts(repository: Path) -> list[str]:
    """Problems of the config.pbtxt files alone: syntax, names and wiring."""
    if not repository.is_dir():
        return [f"{repository}: no such folder; make it with: make engines"]
    configs, problems = _read_configs(repository)
    for folder, config in configs.items():
        if config.name != folder:
            problems.append(f"{folder}/config.pbtxt: name is {config.name!r}, the folder is {folder!r}")
        problems += sample_problems(config) + queue_problems(config)
        if config.platform == "ensemble":
            problems += _check_wiring(config, configs)
    return problems


def _read_configs(repository: Path) -> tuple[dict[str, ModelConfig], list[str]]:
    """Configs by folder, and a line for each that does not parse."""
    configs, problems = {}, []
    for path in sorted(repository.glob("*/config.pbtxt")):
        try:
            configs[path.parent.name] = read_config(path)
        except ConfigError as error:
            problems.append(str(error))
    return configs, problems


def compare_configs(expected: dict[str, ModelConfig], repository: Path, *, rolled_out: bool = False) -> None:
    """Compare the installed configs with what the recipe and its artefacts say.

    Args:
        rolled_out: a head's `version_policy` may name another version than the first.

    Raises:
        RepositoryError: naming each model and field with both values.
    """
    lines = []
    for name, config in expected.items():
        path = repository / name / "config.pbtxt"
        if not path.is_file():
            lines.append(f"{path}: not found")
            continue
        installed = read_config(path)
        lines += [
            f"{name}/config.pbtxt: {field}: installed {getattr(installed, field)!s}, the recipe says {value!s}"
            for field in ModelConfig.DESCRIPTOR.fields_by_name
            if not (rolled_out and field == "version_policy")
            and (value := getattr(config, field)) != getattr(installed, field)
        ]
    if lines:
        raise RepositoryError(
            "\n".join(" ".join(line.split()) for line in lines)
            + "\nInstall again (make engines); for the default recipe edit the checked-in config.pbtxt to match, "
            "or save the changed recipe under a name of its own."
        )


def _check_model_file(version: Path, config: ModelConfig) -> list[str]:
    """Check for one model.onnx, one model.plan or a plan for each GPU, with the inputs and outputs of the config."""
    path, plans = version / "model.onnx", find_plans(version)
    if path.is_file() == bool(plans):
        present = ", ".join(file.name for file in [path, *plans] if plans) or "neither"
        where = f"{config.name}/{version.name}"
        return [f"{where}: needs exactly one of model.onnx and model.plan, found {present}; run: make engines"]
    if plans:
        return _check_plans(config, plans)
    model = onnx.load(path, load_external_data=False)
    initializers = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in initializers]
    return [
        *_compare_tensors(config.name, "input", config.input, inputs),
        *_compare_tensors(config.name, "output", config.output, model.graph.output),
    ]


def _check_plans(config: ModelConfig, plans: list[Path]) -> list[str]:
    """Compare plans, by their manifests, with the config; the preflight checks that they fit the GPU."""
    problems, names = [], [plan.name for plan in plans]
    mapped, per_gpu = dict(config.cc_model_filenames), cc_model_filenames(names)
    if mapped != per_gpu or (len(per_gpu) != len(names) and names != ["model.plan"]):
        problems.append(
            f"{config.name}: cc_model_filenames is {mapped} in config.pbtxt, the files are {names}; run: make engines"
        )
    for plan in plans:
        try:
            engine = read_engine(manifest_path(plan))
        except ManifestError:
            continue  # the preflight reports it
        for kind, tensor, configured in (
            ("input", engine.input, config.input),
            ("output", engine.output, config.output),
        ):
            in_plan = f"{tensor.name} TYPE_{tensor.dtype} {tensor.dims}"
            in_config = ", ".join(f"{value.name} {_signature(value)}" for value in configured)
            if in_config != in_plan:
                problems.append(f"{config.name}: {kind} is {in_config} in config.pbtxt, {in_plan} in {plan.name}")
        if config.max_batch_size > engine.profile.max_batch_size:
            problems.append(
                f"{config.name}: max_batch_size {config.max_batch_size} is over the "
                f"{engine.profile.max_batch_size} that {plan.name} was built for; run: make engines"
            )
    return problems


def _compare_tensors(model: str, kind: str, configured, in_onnx) -> list[str]:
    problems = []
    values = {value.name: value.type.tensor_type for value in in_onnx}
    if {tensor.name for tensor in configured} != set(values):
        names = sorted(tensor.name for tensor in configured)
        problems.append(f"{model}: {kind}s are {names} in config.pbtxt, {sorted(values)} in model.onnx")
    for tensor in configured:
        if tensor.name not in values:
            continue
        dtype, in_file = DataType.Name(tensor.data_type), values[tensor.name]
        dims = [dim.dim_value for dim in in_file.shape.dim][1:]
        if ONNX_TYPES.get(dtype) != in_file.elem_type:
            onnx_type = onnx.TensorProto.DataType.Name(in_file.elem_type)
            problems.append(f"{model}: {kind} {tensor.name} is {dtype} in config.pbtxt, {onnx_type} in model.onnx")
        if list(tensor.dims) != dims:
            problems.append(
                f"{model}: {kind} {tensor.name} has dims {list(tensor.dims)} in config.pbtxt, {dims} in model.onnx"
            )
    return problems


def _check_wiring(ensemble: ModelConfig, configs: dict[str, ModelConfig]) -> list[str]:
    problems = []
    tensors = {tensor.name: _signature(tensor) for tensor in ensemble.input}
    for step in ensemble.ensemble_scheduling.step:
        model = configs.get(step.model_name)
        if model is None:
            problems.append(f"{ensemble.name}: step {step.model_name} is not in the repository")
            continue
        if model.max_batch_size < ensemble.max_batch_size:
            problems.append(
                f"{ensemble.name}: max_batch_size {ensemble.max_batch_size} is over "
                f"the {model.max_batch_size} of {model.name}"
            )
        problems += _check_step_inputs(ensemble.name, step, model, tensors)
        outputs = {tensor.name: _signature(tensor) for tensor in model.output}
        for key, name in step.output_map.items():
            if key not in outputs:
                problems.append(f"{ensemble.name}: {model.name} has no output {key!r}")
            tensors[name] = outputs.get(key, "nothing")
    for tensor in ensemble.output:
        if tensors.get(tensor.name) != _signature(tensor):
            problems.append(
                f"{ensemble.name}: output {tensor.name} is {_signature(tensor)}, "
                f"its step makes {tensors.get(tensor.name)}"
            )
    return problems


def _check_step_inputs(ensemble: str, step, model: ModelConfig, tensors: dict) -> list[str]:
    problems = []
    for tensor in model.input:
        source = step.input_map.get(tensor.name)
        if source is None or source not in tensors:
            problems.append(f"{ensemble}: input {tensor.name} of {model.name} is fed by nothing")
        elif tensors[source] != _signature(tensor):
            problems.append(
                f"{ensemble}: {model.name} takes {tensor.name} {_signature(tensor)}, gets {tensors[source]}"
            )
    return problems


def _signature(tensor) -> str:
    return f"{DataType.Name(tensor.data_type)} {list(tensor.dims)}"


def _check_manifests(repository: Path) -> list[str]:
    """Check the manifests beside the binaries: their sums, and heads against the encoder."""
    try:
        encoder = read_encoder(repository / "clip_encoder" / "1")
    except ManifestError as error:
        return [str(error)]
    problems = _check_encoder_file(repository / "clip_encoder" / "1", encoder)
    for path in sorted(repository.glob("*_head/config.pbtxt")):
        folder = served_folder(path.parent, read_config(path))
        if not (folder / "model.onnx").is_file():
            continue  # _check_model_file reports it
        try:
            head = read_head(folder)
            compare_fingerprints(head, encoder)
        except ManifestError as error:
            problems.append(str(error))
            continue
        problems += _check_head(folder, head)
    return problems


def _check_proof(repository: Path, configs: dict[str, ModelConfig]) -> list[str]:
    """Check that the proof is of the served encoder and heads, in requests that the models take."""
    if "proof" not in configs:
        return [f"{repository / 'proof'}: not found, so servers cannot be proved; run: make engines"]
    if problems := proof_problems(repository):
        return problems
    proof = read_proof(repository)
    for name in proof.head_names:
        folder = served_folder(repository / f"{name}_head", configs[f"{name}_head"])
        revision = read_head(folder).revision
        if revision not in {head.revision for head in proof.heads if head.name == name}:
            problems.append(f"{proof_path(repository)}: {folder} is revision {revision:016x}, which is not in it")
    allowed = min(config.max_batch_size for name, config in configs.items() if name != "proof")
    if proof.batch_size > allowed:
        problems.append(
            f"{proof_path(repository)}: has {proof.batch_size} pictures in a request, max_batch_size is {allowed}; "
            "run: make engines"
        )
    return problems


def _check_encoder_file(folder: Path, encoder: EncoderManifest) -> list[str]:
    path = folder / "model.onnx"
    if path.is_file() and (sha256 := sha256_of(*onnx_files(path))) != encoder.onnx_sha256:
        return [f"{path}: sha256 is {sha256}, encoder.json says {encoder.onnx_sha256}; run: make engines"]
    return []


def _check_head(folder: Path, head: HeadManifest) -> list[str]:
    """Check that the served graph is the manifest's head, and that its config tells clients the labels."""
    problems = []
    model = onnx.load(folder / "model.onnx")
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    served = constants.get("revision_constant")
    if served is None or int(served.item()) != head.revision:
        problems.append(f"{folder}/model.onnx: revision is {served}, head.json says {head.revision}; run: make engines")
    parameters = read_config(folder.parent / "config.pbtxt").parameters
    for key, expected in head_parameters(head).items():
        if parameters[key].string_value != expected:
            problems.append(f"{head.name}_head: {key} is {parameters[key].string_value}, head.json says {expected}")
    return problems
