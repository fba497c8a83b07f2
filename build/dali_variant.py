"""The variant of the model `preprocess` that decodes JPEGs with DALI: its config, its code, and its checks.

    serving: {preprocess: dali}

Name, tensors, limits, queues and errors are those of model_repository/preprocess. Its code is the same, plus that of
serving/preprocess_dali.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from tritonclient.grpc.model_config_pb2 import ModelConfig  # pyright: ignore[reportAttributeAccessIssue] (generated code)

from build.dali_pipeline import CODE, read_dali, write_pipelines
from common.manifest import EncoderManifest, ManifestError, sha256_of
from common.paths import ROOT
from recipes.schema import Recipe
from recipes.serving_section import Serving

THREADS = "dali_threads"
"""Parameter of config.pbtxt with the number of decoding threads of a GPU's process. Only the variant has it."""


def set_variant(config: ModelConfig, serving: Serving) -> None:
    """Change the config of `preprocess` if the recipe wants the variant.

    There is one process for each GPU, or one in all without a GPU. It takes all waiting requests as one batch. The
    server checks tensors before the model does: one that is malformed (an element shorter than its length says)
    fails the whole batch.
    """
    if serving.preprocess != "dali":
        return
    (group,) = config.instance_group
    group.count, group.kind = 1, group.KIND_AUTO
    del config.dynamic_batching.preferred_batch_size[:]
    config.parameters[THREADS].string_value = str(serving.preprocess_instances)


def install_variant(recipe: Recipe, encoder: EncoderManifest, repository: Path) -> None:
    """Add the variant's code, and the pipelines for this machine, to a repository with `preprocess` in it.

    Raises:
        DaliError: DALI is not installed.
    """
    if recipe.serving.preprocess != "dali":
        return
    version = repository / "preprocess" / "1"
    for source in CODE.glob("*.py"):
        shutil.copy(source, version)
    write_pipelines(encoder.preprocessing, recipe.serving.max_batch_size, version)


def variant_problems(repository: Path, preprocess: ModelConfig) -> list[str]:
    """Problems: code that is missing or differs, pipelines that are not those of dali.json or too small."""
    if THREADS not in preprocess.parameters:
        return []
    version = repository / "preprocess" / "1"
    problems = [
        f"{version / source.name}: not the code of {source.relative_to(ROOT)}; run: make engines"
        for source in sorted(CODE.glob("*.py"))
        if not (version / source.name).is_file() or (version / source.name).read_bytes() != source.read_bytes()
    ]
    try:
        manifest = read_dali(version)
    except ManifestError as error:
        return [*problems, str(error)]
    for name, expected in manifest.sha256.items():
        sha256 = sha256_of(version / name) if (version / name).is_file() else "missing"
        if sha256 != expected:
            problems.append(f"{version / name}: sha256 is {sha256}, dali.json says {expected}; run: make engines")
    if preprocess.max_batch_size > manifest.max_batch_size:
        problems.append(
            f"preprocess: max_batch_size {preprocess.max_batch_size} is over the {manifest.max_batch_size} that "
            f"its pipelines were made for; run: make engines"
        )
    return problems
