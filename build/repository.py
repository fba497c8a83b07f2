"""Installs a recipe's encoder and heads into the model repository that Triton loads, and checks it.

    python -m build.repository --recipe demo            # install, then check
    python -m build.repository --recipe demo --target onnx      # and leave TensorRT plans out
    python -m build.repository --recipe demo --check    # check what is installed
    python -m build.repository --recipe nsfw-vit-b-32 --texts   # check the checked-in texts alone

The checked-in model_repository/ is written for the default recipe: there only binaries are added,
and the texts must already say what the recipe says. For any other recipe a stamped copy is made
under artifacts/<recipe>/model_repository. Both get a proof.json, the answers that servers are held to.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from build import dali_variant, repository_check, repository_configs
from build.engine import TARGETS
from build.errors import INTERRUPTED
from build.proof import make_proof
from build.repository_check import RepositoryError
from build.repository_warmup import warmup_file, warmup_tensor
from common.gpu import Machine, find_machine
from common.instances import Processors, instances_line, recorded_processors
from common.manifest import (
    EncoderManifest,
    HeadManifest,
    ManifestError,
    read_encoder,
    read_engine,
    write_atomically,
)
from common.paths import MODEL_REPOSITORY, encoder_folder, head_folder, repository_folder
from common.plans import cc_model_filenames, find_plans, fits, manifest_path, plan_name, unserved
from common.proof import Proof
from common.proof_file import write_proof
from common.recipe_heads import read_recipe_head
from common.recipe_record import write_record
from common.score_watch.steps import add_watches, install_code
from recipes.arguments import add_recipe_options, recipe_of
from recipes.errors import run_step
from recipes.schema import Recipe


@dataclass(frozen=True)
class Artefacts:
    """The files to install: the folders with model.onnx, and their manifests."""

    encoder_folder: Path
    encoder: EncoderManifest
    head_folders: list[Path]
    heads: list[HeadManifest]


def read_artefacts(recipe: Recipe) -> Artefacts:
    """Read the artefacts of the earlier steps.

    Raises:
        ManifestError: something is missing or a head does not fit the encoder.
    """
    encoder = read_encoder(encoder_folder(recipe))
    folders = [head_folder(recipe, head) for head in recipe.heads]
    heads = [read_recipe_head(recipe, head, encoder) for head in recipe.heads]
    return Artefacts(encoder_folder(recipe), encoder, folders, heads)


def install(recipe: Recipe, target: Path, engine: str = "auto") -> None:
    """Put the recipe's models into `target`; `engine` is onnx, tensorrt or auto (see `choose_plans`).

    Raises:
        ManifestError: an artefact is missing or does not fit.
        RepositoryError: the default recipe no longer agrees with the checked-in configs, or plans are missing.
    """
    artefacts = read_artefacts(recipe)
    plans = installed_names(choose_plans(artefacts.encoder_folder, artefacts.encoder, engine))
    configs = stamped_configs(recipe, artefacts, list(plans))
    print(f"build.repository: {instances_line(recipe.serving, Processors.of_this_machine())}", file=sys.stderr)
    if target == MODEL_REPOSITORY:
        repository_check.compare_configs(configs, target)
        proof = _proof(recipe, artefacts, plans)
        _install_binaries(artefacts, plans, target)
        _install_warmup(recipe, target)
        write_proof(target, proof)
        write_record(target, recipe)
        for record in target.glob("*_head/*/rollout.json"):  # a newer version than the one installed would be served
            shutil.rmtree(record.parent)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".partial-") as partial:
        fresh = Path(partial) / "model_repository"
        for name, config in configs.items():
            version = fresh / name / "1"
            version.mkdir(parents=True)
            (fresh / name / "config.pbtxt").write_text(repository_configs.to_text(config, recipe.name))
        for model in ("preprocess", "proof"):
            for source in (MODEL_REPOSITORY / model / "1").glob("*.py"):
                shutil.copy(source, fresh / model / "1")
        dali_variant.install_variant(recipe, artefacts.encoder, fresh)
        install_code(configs, fresh)
        _install_binaries(artefacts, plans, fresh)
        _install_warmup(recipe, fresh)
        write_proof(fresh, _proof(recipe, artefacts, plans, fresh / "preprocess" / "1"))
        write_record(fresh, recipe)
        if target.exists():
            target.rename(Path(partial) / "previous")
        fresh.rename(target)


def check_installed(recipe: Recipe, target: Path, machine: Machine | None = None) -> list[str]:
    """Problems of an installed repository in itself and against the recipe; see `repository_check`."""
    plans = [plan.name for plan in find_plans(target / "clip_encoder" / "1")]
    configs = stamped_configs(recipe, read_artefacts(recipe), plans, recorded_processors(target))
    repository_check.compare_configs(configs, target, rolled_out=True)
    return repository_check.check(target, machine)


def choose_plans(folder: Path, encoder: EncoderManifest, engine: str, machine: Machine | None = None) -> list[Path]:
    """The plans in an encoder's folder to install instead of its ONNX file; none means the ONNX file.

    `tensorrt` takes those that fit the encoder and this machine's TensorRT, and needs one for every GPU here;
    `auto` does the same, or takes the ONNX file if one is missing.

    Raises:
        RepositoryError: `engine` is tensorrt, and a plan is missing.
    """
    if engine == "onnx":
        return []
    plans = sorted(folder.glob("engines/*/model.plan"))
    if engine == "auto" and not plans:
        return []
    machine = machine or find_machine()
    engines = {plan: read_engine(manifest_path(plan)) for plan in plans if manifest_path(plan).is_file()}
    fitting = {plan: manifest for plan, manifest in engines.items() if fits(manifest, encoder, machine)}
    missing = unserved(machine, {manifest.compute_capability for manifest in fitting.values()})
    if fitting and machine.gpus and not missing:
        return list(fitting)
    unplanned = ", ".join(f"{gpu.name} ({gpu.compute_capability})" for gpu in missing) or "any GPU"
    tensorrt = machine.tensorrt or "(not installed)"
    problem = f"{folder / 'engines'}: no plan of this encoder for {unplanned} and TensorRT {tensorrt}"
    if engine == "tensorrt":
        raise RepositoryError(f"{problem}; build it with: make engines TARGET=tensorrt")
    print(f"build.repository: {problem}; installing the ONNX file", file=sys.stderr)
    return []


def installed_names(plans: list[Path]) -> dict[str, Path]:
    """Plans by their installed names: a single one is model.plan, several name their GPUs."""
    if len(plans) == 1:
        return {plan_name(): plans[0]}
    return {plan_name(read_engine(manifest_path(plan)).compute_capability): plan for plan in plans}


def stamped_configs(
    recipe: Recipe, artefacts: Artefacts, plans: list[str], processors: Processors | None = None
) -> dict[str, repository_configs.ModelConfig]:
    """The stamped configs with the watches and Triton's map from compute capability to plan, if any.

    What `serving.goal` decides is for `processors`, by default those of this machine.

    The default file name, of a file that is missing, tells Triton the backend, and an unlisted GPU that it has no plan.
    """
    configs = repository_configs.stamped(recipe, artefacts.encoder, artefacts.heads, processors)
    add_watches(configs, recipe, artefacts.heads)
    if names := cc_model_filenames(plans):
        configs["clip_encoder"].default_model_filename = plan_name()
        configs["clip_encoder"].cc_model_filenames.update(names)
    return configs


def _install_binaries(artefacts: Artefacts, plans: dict[str, Path], target: Path) -> None:
    encoder = artefacts.encoder_folder
    files = _plan_files(plans) if plans else _onnx_files(encoder)
    _install_files(files | {"encoder.json": encoder / "encoder.json"}, target / "clip_encoder" / "1")
    for folder, head in zip(artefacts.head_folders, artefacts.heads, strict=True):
        files = _onnx_files(folder) | {"head.json": folder / "head.json"}
        _install_files(files, target / f"{head.name}_head" / "1")


def _proof(recipe: Recipe, artefacts: Artefacts, plans: dict[str, Path], preprocess: Path | None = None) -> Proof:
    """The answers that the installed files must give; `preprocess` is the folder with the pipelines of DALI."""
    heads = list(zip(artefacts.head_folders, artefacts.heads, strict=True))
    dali = preprocess if recipe.serving.preprocess == "dali" else None
    return make_proof(recipe, artefacts.encoder, heads, list(plans.values()), dali)


def _install_warmup(recipe: Recipe, target: Path) -> None:
    if recipe.serving.warmup != "none":
        write_atomically(warmup_file(target), warmup_tensor(recipe.serving))


def _onnx_files(source: Path) -> dict[str, Path]:
    """model.onnx, and the file beside it that holds the weights of one over 2 GB."""
    if not (source / "model.onnx").is_file():
        raise ManifestError(f"{source / 'model.onnx'}: not found; make it with: make engines")
    return {path.name: path for path in sorted(source.glob("model.onnx*"))}


def _plan_files(plans: dict[str, Path]) -> dict[str, Path]:
    return plans | {manifest_path(Path(name)).name: manifest_path(plan) for name, plan in plans.items()}


def _install_files(files: dict[str, Path], version: Path) -> None:
    """Copy a model's files and remove those of an earlier build: a plan would win over the ONNX file."""
    version.mkdir(parents=True, exist_ok=True)
    for name, source in files.items():
        partial = version / f".{name}.partial"
        shutil.copy(source, partial)
        partial.replace(version / name)
    for pattern in ("model.onnx*", "model*.plan", "engine*.json"):
        for path in version.glob(pattern):
            if path.name not in files:
                path.unlink()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m build.repository", description=(__doc__ or "").splitlines()[0])
    add_recipe_options(parser)
    parser.add_argument("--target", choices=TARGETS, default="auto", help="install plans, or the ONNX file")
    parser.add_argument("--check", action="store_true", help="change nothing; check what is installed")
    parser.add_argument("--texts", action="store_true", help="check only the checked-in config.pbtxt files")
    arguments = parser.parse_args(argv)
    recipe = recipe_of(arguments)
    target = MODEL_REPOSITORY if arguments.texts else repository_folder(recipe)
    if not (arguments.check or arguments.texts):
        install(recipe, target, arguments.target)
    problems = repository_check.check_texts(target) if arguments.texts else check_installed(recipe, target)
    for problem in problems:
        print(f"build.repository: {problem}", file=sys.stderr)
    if problems:
        return 1
    print(target)
    return 0


if __name__ == "__main__":
    sys.exit(run_step("build.repository", main, INTERRUPTED))
