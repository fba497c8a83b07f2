"""Rates of a matrix product and of an encoder, by torch and by onnxruntime, on the GPU, or of a dry run on the CPU."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu.plan import CannotRun, Rows, Settings, recipe_of_model
from benchmarks.gpu.timing import seconds_per_call
from build.encoder import make_encoder
from build.export import EncoderGraph
from build.tower import load_tower
from common.paths import encoder_folder

DTYPES = {"fp16": torch.float16, "fp32": torch.float32}


def device_of(settings: Settings) -> torch.device:
    """The GPU; of a dry run the CPU.

    Raises:
        CannotRun: torch sees no GPU.
    """
    if settings.dry_run:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise CannotRun(f"torch {torch.__version__} sees no GPU; try python -m benchmarks.gpu --dry-run without one")
    return torch.device("cuda")


def device_name(device: torch.device) -> str:
    return "CPU" if device.type == "cpu" else torch.cuda.get_device_name(device)


def waiter(device: torch.device) -> Callable[[], object]:
    """A function that returns when the device has done what it was given."""
    return (lambda: None) if device.type == "cpu" else torch.cuda.synchronize


def matmul(model: str | None, settings: Settings, rows: Rows) -> None:
    """A product of square matrices, in TFLOP/s: what the card is measured by."""
    device, size = device_of(settings), settings.matrix
    torch.set_float32_matmul_precision("highest")  # fp32, not TF32
    for name, dtype in DTYPES.items():
        left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        taken = seconds_per_call(lambda left=left, right=right: left @ right, waiter(device), settings.seconds)
        rows.add(device=device_name(device), dtype=name, size=size, ms=1000 * taken, tflops=product_tflop(size) / taken)


def product_tflop(size: int) -> float:
    """TFLOP of one product of square matrices: a multiplication and an addition a step."""
    return 2 * size**3 / 1e12


class HalfEncoder(torch.nn.Module):
    """(B, H, W, 3) uint8 pixels → (B, embed_dim) embeddings, computed in the weights' type throughout."""

    def __init__(self, graph: EncoderGraph) -> None:
        super().__init__()
        self.part = graph.parts[0]

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.part(pixels.permute(0, 3, 1, 2).to(self.part.scale.dtype))  # type: ignore[union-attr]


def encoder_of(model: str) -> tuple[HalfEncoder, tuple[int, ...]]:
    """A model's encoder in fp32 on the CPU, and the dims of one picture's pixels."""
    graph = EncoderGraph([load_tower(recipe_of_model(model).encoder)]).eval()
    return HalfEncoder(graph), tuple(graph.pixel_dims)


def flops_per_image(encoder: HalfEncoder, dims: tuple[int, ...]) -> int:
    """Multiplications and additions of the products and convolutions of one picture."""
    # With gradients, because torch's counter does not see into the fused attention of inference.
    with FlopCounterMode(display=False) as counter:
        encoder(torch.zeros((1, *dims), dtype=torch.uint8))
    return int(counter.get_total_flops())


def torch_rates(model: str, settings: Settings, rows: Rows) -> None:
    """Images/s of the encoder in fp16, as torch runs it and compiled; a dry run compiles without generating code."""
    device = device_of(settings)
    encoder, dims = encoder_of(model)
    flops = flops_per_image(encoder, dims)
    encoder = encoder.to(device, torch.float16).eval()
    backend = "aot_eager" if settings.dry_run else "inductor"
    with torch.inference_mode():
        for batch in settings.batches:
            pixels = torch.randint(0, 256, (batch, *dims), dtype=torch.uint8, device=device)
            compiled = torch.compile(encoder, backend=backend, dynamic=False)
            for name, run in (("torch", encoder), (f"torch.compile ({backend})", compiled)):
                taken = seconds_per_call(lambda run=run, pixels=pixels: run(pixels), waiter(device), settings.seconds)
                rows.add(device=device_name(device), runs=name, **_rate(model, batch, taken, flops))


def export(model: str, settings: Settings, rows: Rows) -> None:
    """The ONNX file in fp16, built and checked as any recipe's; its operations are counted here too."""
    for manifest in make_encoder(recipe_of_model(model)):
        rows.add(
            model=model,
            precision=manifest.precision,
            embed_dim=manifest.embed_dim,
            cosine_min=manifest.parity.cosine_min,
        )
    encoder, dims = encoder_of(model)
    rows.add(model=model, flops_per_image=flops_per_image(encoder, dims))


def onnxruntime_rates(model: str, settings: Settings, rows: Rows) -> None:
    """Images/s of the ONNX file in fp16, with pixels and embeddings on the device."""
    import onnxruntime

    path = encoder_folder(recipe_of_model(model)) / "model.onnx"
    if not path.is_file():
        raise CannotRun("there is no ONNX file, because the part export failed or was not run")
    session, device = open_session(path, settings)
    dims = session.get_inputs()[0].shape[1:]
    for batch in settings.batches:
        pixels = np.random.default_rng(0).integers(0, 256, (batch, *dims), np.uint8)
        binding = session.io_binding()
        binding.bind_ortvalue_input("pixels", onnxruntime.OrtValue.ortvalue_from_numpy(pixels, device, 0))
        binding.bind_output("embedding", device)
        taken = seconds_per_call(
            lambda binding=binding: session.run_with_iobinding(binding), binding.synchronize_outputs, settings.seconds
        )
        provider = session.get_providers()[0].removesuffix("ExecutionProvider")
        rows.add(device=device.upper(), runs=f"onnxruntime ({provider})", **_rate(model, batch, taken, None))


def open_session(path: os.PathLike[str], settings: Settings) -> tuple[Any, str]:
    """A session on the GPU, fp32 products in fp32, and the name of its device; of a dry run on the CPU.

    Raises:
        CannotRun: this onnxruntime does not run on the GPU.
    """
    import onnxruntime

    if settings.dry_run:
        return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]), "cpu"
    available = onnxruntime.get_available_providers()
    if "CUDAExecutionProvider" not in available:
        raise CannotRun(
            f"onnxruntime {onnxruntime.__version__} has {', '.join(available)} and no CUDA; install onnxruntime-gpu"
        )
    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # the CUDA that torch brings
    providers = [("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(path, providers=providers)
    if session.get_providers()[0] != "CUDAExecutionProvider":
        raise CannotRun(f"onnxruntime {onnxruntime.__version__} could not start CUDA here, see its messages above")
    return session, "cuda"


def _rate(model: str, batch: int, taken: float, flops: int | None) -> dict[str, Any]:
    counted = {} if flops is None else {"flops_per_image": flops}
    return {
        "model": model,
        "dtype": "fp16",
        "batch": batch,
        "ms": 1000 * taken,
        "images_per_s": batch / taken,
    } | counted
