"""Writes image towers in torch as one ONNX file: `pixels` UINT8 [B, H, W, 3] → `embedding` FP32 [B, D].

The cast, mean and std, and the L2 normalisation are inside. Weights of over 2 GB, which one file of protobuf
cannot hold, lie beside it in `model.onnx.data`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import onnx
import torch

from build.errors import GraphError
from build.onnx_model import MAX_FILE_BYTES
from build.tower import Tower, pixel_dims, views_of
from recipes.build_section import MAX_IR_VERSION

LARGEST_BATCH = 4096
_OUTPUT = "embedding_of_pictures"
_RENAMED = {"embedding": "embedding_inside", _OUTPUT: "embedding"}
"""Names in the exported graph; the exporter does not see to it that the output's is not taken."""


class EncoderGraph(torch.nn.Module):
    """Towers side by side: (B, H, W, 3) uint8 pixels → (B, embed_dim) float32, one tower's embedding after another's.

    H and W are those of all views below one another; each tower sees its own.
    """

    def __init__(self, towers: list[Tower]) -> None:
        super().__init__()
        views = views_of(towers)
        self.pixel_dims = pixel_dims(views)
        tops = {view: sum(above.image_size for above in views[:index]) for index, view in enumerate(views)}
        self.parts = torch.nn.ModuleList(_TowerGraph(tower, tops[tower.preprocessing]) for tower in towers)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        inputs = pixels.to(torch.float32).permute(0, 3, 1, 2)
        embeddings = [part(inputs) for part in self.parts]
        return embeddings[0] if len(embeddings) == 1 else torch.cat(embeddings, dim=-1)


class _TowerGraph(torch.nn.Module):
    """One tower: (B, 3, H, W) float32 values of 0 to 255, all views → (B, embed_dim) float32."""

    scale: torch.Tensor
    offset: torch.Tensor

    def __init__(self, tower: Tower, top: int) -> None:
        super().__init__()
        mean, std = torch.tensor(tower.preprocessing.mean), torch.tensor(tower.preprocessing.std)
        self.visual = tower.visual
        self.normalize = tower.normalize
        self.rows = (top, top + tower.preprocessing.image_size)
        self.columns = tower.preprocessing.image_size
        self.register_buffer("scale", (1 / (255 * std)).view(1, 3, 1, 1))
        self.register_buffer("offset", (-mean / std).view(1, 3, 1, 1))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if inputs.shape[-2:] != (self.columns, self.columns):
            inputs = inputs[:, :, self.rows[0] : self.rows[1], : self.columns]
        embedding = self.visual(inputs * self.scale + self.offset)
        return torch.nn.functional.normalize(embedding, dim=-1) if self.normalize else embedding


def export_onnx(graph: EncoderGraph, opset: int, path: Path) -> None:
    """Write `graph` with a dynamic batch, loadable by the oldest promised onnxruntime.

    Raises:
        GraphError: the exported graph has a pattern that TensorRT computes wrongly.
    """
    example = torch.zeros((2, *graph.pixel_dims), dtype=torch.uint8)
    sizes = (tensor.numel() * tensor.element_size() for tensor in graph.state_dict().values())
    with torch.inference_mode(), scale_on_the_query():
        torch.onnx.export(
            graph.eval(),
            (example,),
            path,
            input_names=["pixels"],
            output_names=[_OUTPUT],
            dynamic_shapes={"pixels": {0: torch.export.Dim("batch", min=1, max=LARGEST_BATCH)}},
            opset_version=opset,
            external_data=sum(sizes) > MAX_FILE_BYTES,
            dynamo=True,
            verbose=False,
        )
    model = onnx.load(path, load_external_data=False)
    name_the_output(model)
    feed_pixels_through_the_cast(model)
    model.ir_version = min(model.ir_version, MAX_IR_VERSION)
    del model.metadata_props[:]
    for node in model.graph.node:  # the exporter notes source lines and paths of this machine
        del node.metadata_props[:]
        node.doc_string = ""
    check_graph(model)
    onnx.save(model, path)
    onnx.checker.check_model(path)


def release_weights(graph: torch.nn.Module) -> None:
    """Give the memory of a module's weights back, though the exporter's caches still refer to them."""
    for tensor in (*graph.parameters(), *graph.buffers()):
        storage = tensor.untyped_storage()
        if storage.resizable():
            storage.resize_(0)


@contextlib.contextmanager
def scale_on_the_query() -> Iterator[None]:
    """Export attention as its definition, with the whole scale on the query.

    The exporter's own version multiplies query and key by the root of the scale each, which TensorRT 10.7
    computed wrongly even in fp32.
    """
    with mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", attention):
        yield


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """`torch.nn.functional.scaled_dot_product_attention` of image towers: (…, N, E) each → (…, N, E)."""
    if is_causal or enable_gqa:
        raise NotImplementedError("causal or grouped attention in an image tower")
    logits = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-2, -1)
    return torch.softmax(logits if attn_mask is None else logits + attn_mask, dim=-1) @ value


def check_graph(model: onnx.ModelProto) -> None:
    """Check that attention is scaled on one side only, and that no LayerNormalization is taken apart.

    Raises:
        GraphError: naming the node.
    """
    made_by = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        factors = [made_by[name] for name in node.input if name in made_by]
        if node.op_type == "MatMul" and len(factors) == 2 and all(_is_scaled(factor, made_by) for factor in factors):
            raise GraphError(f"{node.name or node.output[0]}: a matrix product with a scale on both sides")
        if node.op_type == "Sqrt" and _is_of_a_variance(node, made_by):
            raise GraphError(f"{node.name or node.output[0]}: a layer normalisation taken apart")


def _is_scaled(node: onnx.NodeProto, made_by: dict[str, onnx.NodeProto]) -> bool:
    """True if a tensor is another one times a constant (which is no output of a node with inputs)."""
    constant = [name for name in node.input if name not in made_by or made_by[name].op_type == "Constant"]
    return node.op_type == "Mul" and len(constant) == 1


def _is_of_a_variance(node: onnx.NodeProto, made_by: dict[str, onnx.NodeProto]) -> bool:
    """True for the Sqrt of a mean of squared differences, with or without an epsilon added."""
    means = [source for source in _sources(node, made_by, 2) if source.op_type == "ReduceMean"]
    squares = [source for mean in means for source in _sources(mean, made_by, 1)]
    return any(source.op_type == "Sub" for square in squares for source in _sources(square, made_by, 1))


def _sources(node: onnx.NodeProto, made_by: dict[str, onnx.NodeProto], steps: int) -> list[onnx.NodeProto]:
    """The nodes that a node computes from, at most so many steps back."""
    nearest = [made_by[name] for name in node.input if name in made_by]
    return nearest + [
        source for near in nearest for source in (_sources(near, made_by, steps - 1) if steps > 1 else [])
    ]


def name_the_output(model: onnx.ModelProto) -> None:
    """Call the output `embedding`, and otherwise what the model itself calls so, as SigLIP's positions."""
    graph = model.graph
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [_RENAMED.get(name, name) for name in names]
    for value in (*graph.value_info, *graph.initializer, *graph.output):
        value.name = _RENAMED.get(value.name, value.name)


def feed_pixels_through_the_cast(model: onnx.ModelProto) -> None:
    """Make every node read the pixels after their Cast: TensorRT accepts a UINT8 input in a Cast alone.

    The exporter also reads the batch size from it.
    """
    nodes = model.graph.node
    (cast,) = (node for node in nodes if node.op_type == "Cast" and "pixels" in node.input)
    for node in nodes:
        if node is not cast:
            node.input[:] = [cast.output[0] if name == "pixels" else name for name in node.input]
    first = onnx.NodeProto()
    first.CopyFrom(cast)
    nodes.remove(cast)
    nodes.insert(0, first)
