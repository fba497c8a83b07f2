"""The steps that watch heads: a model `<head>_watch` for each head, from the template in model/.

    <head>_head → score, decision, revision → <head>_watch → the ensemble's <head>, <head>_decision, <head>_revision

All three outputs pass through the watch, because an ensemble output that also feeds a step deadlocks when it is not
requested. A shadow head is a step of its own whose score and decision only the watch takes, so that it runs whenever
the live head does, and is no output of the ensemble.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from tritonclient.grpc.model_config_pb2 import ModelConfig  # pyright: ignore[reportAttributeAccessIssue] (generated code)

from common.manifest import HeadManifest
from common.model_config import read_config
from common.paths import MODEL_REPOSITORY, ROOT
from common.score_watch.parameters import PARAMETER, watched_parameters
from recipes.schema import Recipe

TEMPLATE = ROOT / "common" / "score_watch" / "model"
CODE = (TEMPLATE / "model.py", TEMPLATE / "score_counts.py", MODEL_REPOSITORY / "preprocess/1/metric_counters.py")
WATCHED = ("score", "decision", "revision")
COMPARED = ("score", "decision")
"""What the watch takes of a shadow head, as `shadow_score` and `shadow_decision`."""


def add_watches(configs: dict[str, ModelConfig], recipe: Recipe, heads: list[HeadManifest]) -> None:
    """Put the watches into the configs of a recipe that wants them."""
    if not recipe.serving.watch:
        return
    manifests = {head.name: head for head in heads}
    ensemble = configs["image_score"]
    for name in recipe.shadows:
        _hide(ensemble, name)
    for head in recipe.heads:
        if head.name in recipe.shadows:
            continue
        shadow = None if head.shadow is None else manifests[head.shadow]
        config = _watch(manifests[head.name], shadow)
        config.max_batch_size = recipe.serving.max_batch_size
        configs[config.name] = config
        _insert_step(ensemble, head.name, head.shadow)


def install_code(configs: dict[str, ModelConfig], repository: Path) -> None:
    """Copy the watches' code beside their configs."""
    for name, config in configs.items():
        if PARAMETER in config.parameters:
            for source in CODE:
                shutil.copy(source, repository / name / "1")


def code_problems(repository: Path) -> list[str]:
    """Watches whose code is missing, or is not that of the template."""
    return [
        f"{folder}/{source.name}: not the code of {source.relative_to(ROOT)}; run: make engines"
        for folder in sorted(repository.glob("*_watch/1"))
        for source in CODE
        if not (folder / source.name).is_file() or (folder / source.name).read_bytes() != source.read_bytes()
    ]


def _watch(head: HeadManifest, shadow: HeadManifest | None) -> ModelConfig:
    config = read_config(TEMPLATE / "config.pbtxt")
    config.name = f"{head.name}_watch"
    if shadow is not None:
        for tensor in [tensor for tensor in config.input if tensor.name in COMPARED]:
            added = config.input.add()
            added.CopyFrom(tensor)
            added.name = f"shadow_{tensor.name}"
    for tensor in (*config.input, *config.output):
        tensor.dims[:] = [1 if tensor.name == "revision" else len(head.labels)]
    config.parameters[PARAMETER].string_value = watched_parameters(head, shadow)
    return config


def _hide(ensemble: ModelConfig, head: str) -> None:
    """A shadow head's outputs go to the watch alone."""
    step = _step(ensemble, head)
    hidden = set(step.output_map.values())
    kept = [output for output in ensemble.output if output.name not in hidden]
    del ensemble.output[:]
    ensemble.output.extend(kept)
    step.output_map.clear()
    for output in COMPARED:
        step.output_map[output] = _internal(head, output)


def _insert_step(ensemble: ModelConfig, head: str, shadow: str | None) -> None:
    """The watch takes the head's outputs under internal names and gives them the names that clients ask for."""
    live = _step(ensemble, head)
    step = ensemble.ensemble_scheduling.step.add()
    step.model_name, step.model_version = f"{head}_watch", -1
    for output in WATCHED:
        step.output_map[output] = live.output_map[output]
        step.input_map[output] = live.output_map[output] = _internal(head, output)
    for output in COMPARED if shadow is not None else ():
        step.input_map[f"shadow_{output}"] = _internal(str(shadow), output)


def _step(ensemble: ModelConfig, head: str):
    (step,) = (step for step in ensemble.ensemble_scheduling.step if step.model_name == f"{head}_head")
    return step


def _internal(head: str, output: str) -> str:
    """Name of a tensor inside the ensemble; no head's output can have it, for no head's name has a dot."""
    return f"{head}_head.{output}"
