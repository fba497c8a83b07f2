"""Stamps a recipe's numbers into the checked-in config.pbtxt texts, as protobuf."""

from __future__ import annotations

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig  # pyright: ignore[reportAttributeAccessIssue] (generated code)

from build.dali_variant import set_variant
from build.repository_queues import set_queues
from build.repository_warmup import set_warmup
from common.head_parameters import head_parameters
from common.instances import PARAMETER, Processors, preferred_batch, processors_text, with_instances
from common.manifest import EncoderManifest, HeadManifest
from common.model_config import read_config
from common.paths import MODEL_REPOSITORY
from common.pixels import pixel_parameters
from recipes.schema import Recipe
from recipes.serving_section import Serving

HEAD_TEMPLATE = "nsfw_head"


def to_text(config: ModelConfig, recipe_name: str) -> str:
    return (
        f"# Stamped by `python -m build.repository --recipe {recipe_name}`; do not edit.\n"
        f"# The commented original is model_repository/ at the project's root.\n" + text_format.MessageToString(config)
    )


def stamped(
    recipe: Recipe, encoder: EncoderManifest, heads: list[HeadManifest], processors: Processors | None = None
) -> dict[str, ModelConfig]:
    """Every model's config for a recipe, by model name; `serving.goal` decides for `processors` or this machine."""
    processors = processors or Processors.of_this_machine()
    configs = {
        "preprocess": _preprocess(with_instances(recipe.serving, processors), encoder),
        "clip_encoder": _encoder(recipe, encoder, processors),
        "image_embedding": _image_embedding(encoder),
        "image_score": _image_score(recipe.serving, heads),
    }
    configs |= {f"{head.name}_head": _head(head) for head in heads}
    for config in configs.values():
        config.max_batch_size = recipe.serving.max_batch_size
        set_warmup(config, recipe.serving)
    return configs | {"proof": _template("proof")}


def _template(model: str) -> ModelConfig:
    return read_config(MODEL_REPOSITORY / model / "config.pbtxt")


def _preprocess(serving: Serving, encoder: EncoderManifest) -> ModelConfig:
    config = _template("preprocess")
    config.output[0].dims[:] = encoder.input.dims
    config.instance_group[0].count = serving.preprocess_instances
    set_queues(config, serving)
    _set_parameters(config, pixel_parameters(encoder.preprocessing, serving))
    set_variant(config, serving)
    return config


def _encoder(recipe: Recipe, encoder: EncoderManifest, processors: Processors) -> ModelConfig:
    config, serving = _template("clip_encoder"), with_instances(recipe.serving, processors)
    config.input[0].dims[:] = encoder.input.dims
    config.output[0].dims[:] = encoder.output.dims
    config.instance_group[0].count = serving.encoder_instances
    config.dynamic_batching.max_queue_delay_microseconds = serving.max_queue_delay_us
    if (preferred := preferred_batch(recipe.serving, processors)) is not None:
        config.dynamic_batching.preferred_batch_size[:] = [preferred]
    set_queues(config, serving)
    (cuda,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    cuda.parameters["use_tf32"] = str(int(recipe.build.engine.tf32))
    _set_parameters(config, {"intra_op_thread_count": str(serving.intra_op_threads)})
    if recipe.serving.goal == "throughput":
        _set_parameters(config, {PARAMETER: processors_text(processors)})
    return config


def _head(head: HeadManifest) -> ModelConfig:
    config = _template(HEAD_TEMPLATE)
    config.name = f"{head.name}_head"
    config.input[0].dims[:] = [head.encoder.embed_dim]
    if head.deviation:
        added = config.output.add()
        added.CopyFrom(next(output for output in config.output if output.name == "score"))
        added.name = "deviation"
    for output in config.output:
        output.dims[:] = [1 if output.name == "revision" else len(head.labels)]
    _set_parameters(config, head_parameters(head))
    if head.notice:
        _set_parameters(config, {"notice": head.notice})
    return config


def _image_embedding(encoder: EncoderManifest) -> ModelConfig:
    config = _template("image_embedding")
    config.output[0].dims[:] = encoder.output.dims
    return config


def _image_score(serving: Serving, heads: list[HeadManifest]) -> ModelConfig:
    """The checked-in ensemble, with its first head's outputs and step repeated for each head."""
    config = _template("image_score")
    _set_parameters(config, {"formats": ",".join(serving.formats)})
    template_name = HEAD_TEMPLATE.removesuffix("_head")
    head_outputs = [output for output in config.output if output.name.startswith(template_name)]
    (head_step,) = (step for step in config.ensemble_scheduling.step if step.model_name == HEAD_TEMPLATE)
    del config.output[:], config.ensemble_scheduling.step[2:]  # preprocess and clip_encoder stay
    for head in heads:
        for output in head_outputs:
            added = config.output.add()
            added.CopyFrom(output)
            added.name = output.name.replace(template_name, head.name, 1)
            added.dims[:] = [1 if added.name.endswith("_revision") else len(head.labels)]
        if head.deviation:
            added = config.output.add()
            added.CopyFrom(next(output for output in config.output if output.name == head.name))
            added.name = f"{head.name}_deviation"
        step = config.ensemble_scheduling.step.add()
        step.CopyFrom(head_step)
        step.model_name = f"{head.name}_head"
        for key, value in head_step.output_map.items():
            step.output_map[key] = value.replace(template_name, head.name, 1)
        if head.deviation:
            step.output_map["deviation"] = f"{head.name}_deviation"
    return config


def _set_parameters(config: ModelConfig, parameters: dict[str, str]) -> None:
    for key, value in parameters.items():
        config.parameters[key].string_value = value
