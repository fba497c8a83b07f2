"""Builds and runs TensorRT plans: every call into the `tensorrt` module, which is a parameter.

Only names and signatures that 10.12 and 11.x share are used. The network is strongly typed, so precision is the ONNX
file's: before 11 a flag requests that, from 11 on it is the only way and the flag is accepted and ignored. TF32, which
the builder takes for fp32 unless told otherwise, is a builder flag all the same.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx

from common.manifest import BatchProfile, Tensor, write_atomically
from recipes.errors import ExpectedError

REPORT_SECONDS = 10
HEARTBEAT_SECONDS = 30


class PlanError(ExpectedError):
    """TensorRT built no plan, or one that does not run."""


@dataclass(frozen=True)
class PlanSpec:
    """The plan to build: the ONNX file with its one input and output, batch sizes, and scratch memory in bytes."""

    onnx_path: Path
    input: Tensor
    output: Tensor
    profile: BatchProfile
    workspace_bytes: int
    tf32: bool = False


@dataclass
class Progress:
    """Passes the builder's messages to `report`; set `stopped` and it ends at the next step.

    TensorRT calls the monitor from several threads; each call is a few assignments and at most one line.
    """

    report: Any
    stopped: bool = False
    errors: deque[str] = field(default_factory=lambda: deque(maxlen=8))
    complaints: int = 0
    """Errors and warnings of the builder so far."""
    failure: BaseException | None = None
    """The exception that ended the build from inside a callback; TensorRT's bindings swallow it."""
    steps: dict[str, int] = field(default_factory=dict)
    latest: str = "the start"
    """The newest step."""
    latest_at: float = field(default_factory=time.monotonic)
    reported_at: float = field(default_factory=time.monotonic)

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        self.steps[phase] = steps
        if parent is None:
            self._note(f"{phase} …")
            self._report(self.latest)

    def step(self, phase: str, step: int) -> bool:
        """Report the step; False stops the builder."""
        self._note(f"{phase}: {step + 1} of {self.steps.get(phase, 0)}")
        if time.monotonic() - self.reported_at >= REPORT_SECONDS:
            self._report(self.latest)
        return not self.stopped

    def heartbeat(self) -> None:
        """Report that the builder still runs, when nothing has been reported for a while: one step may take minutes."""
        if time.monotonic() - self.reported_at >= HEARTBEAT_SECONDS:
            self._report(f"still building; {time.monotonic() - self.latest_at:.0f} s since {self.latest}")

    def _note(self, step: str) -> None:
        self.latest, self.latest_at = step, time.monotonic()

    def _report(self, line: str) -> None:
        self.reported_at = time.monotonic()
        self.report(line)


def build_plan(trt: ModuleType, spec: PlanSpec, timing_cache: Path, progress: Progress) -> memoryview:
    """Build the serialized engine for the current GPU; its measurements are kept in `timing_cache` even if it fails.

    Raises:
        PlanError: the ONNX file does not parse, or TensorRT finds no way to run it.
        KeyboardInterrupt: `progress.stopped` was set and the builder ended early.
    """
    check_uint8_input(spec)
    logger, monitor = _logger(trt, progress), _monitor(trt, progress)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    _parse(parser, spec.onnx_path)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, spec.workspace_bytes)
    (config.set_flag if spec.tf32 else config.clear_flag)(trt.BuilderFlag.TF32)  # set unless it is cleared
    config.progress_monitor = monitor
    _add_profile(builder, config, spec)
    _load_timing_cache(config, timing_cache, progress)
    try:
        plan = builder.build_serialized_network(network, config)
    finally:
        _save_timing_cache(config, timing_cache)
    if progress.failure is not None:
        raise progress.failure
    if progress.stopped:
        raise KeyboardInterrupt
    if plan is None:
        raise PlanError(f"{spec.onnx_path}: TensorRT {trt.__version__} built no plan:\n{_lines(progress.errors)}")
    return memoryview(plan)


def check_uint8_input(spec: PlanSpec) -> None:
    """Check that every reader of a UINT8 input converts it at once: TensorRT has UINT8 as a network's input alone.

    Raises:
        PlanError: naming the nodes that do something else with it.
    """
    if spec.input.dtype != "UINT8":
        return
    graph = onnx.load(spec.onnx_path, load_external_data=False).graph
    wrong = [
        f"{node.name!r} ({node.op_type})"
        for node in graph.node
        if spec.input.name in node.input and node.op_type != "Cast"
    ]
    if wrong:
        raise PlanError(
            f"{spec.onnx_path}: TensorRT takes the UINT8 input {spec.input.name} only straight into a Cast, "
            f"here it goes into {', '.join(wrong)}; export the encoder again (make encoder), or use TARGET=onnx"
        )


def run_plan(trt: ModuleType, plan: bytes, spec: PlanSpec, pixels: np.ndarray, device: str = "cuda") -> np.ndarray:
    """Run a plan: (B, H, W, 3) uint8 → (B, embed_dim) float32, with GPU memory from torch.

    Raises:
        PlanError: TensorRT does not load the plan, or it does not have the tensors of the ONNX file.
    """
    import torch  # here, because choosing a target must stay fast

    progress = Progress(report=lambda line: None)
    runtime = trt.Runtime(_logger(trt, progress))
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise PlanError(f"TensorRT {trt.__version__} does not load the plan it built:\n{_lines(progress.errors)}")
    names = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
    if names != {spec.input.name, spec.output.name}:
        raise PlanError(f"the plan has the tensors {sorted(names)}, not {spec.input.name} and {spec.output.name}")
    context = engine.create_execution_context()
    embeddings = []
    for start in range(0, len(pixels), spec.profile.max_batch_size):
        images = torch.from_numpy(pixels[start : start + spec.profile.max_batch_size]).to(device)
        embedding = torch.zeros((len(images), *spec.output.dims), dtype=torch.float32, device=device)
        context.set_input_shape(spec.input.name, tuple(images.shape))
        context.set_tensor_address(spec.input.name, images.data_ptr())
        context.set_tensor_address(spec.output.name, embedding.data_ptr())
        if not context.execute_async_v3(0):  # the default stream, in which torch copies the result after it
            raise PlanError(f"the plan does not run on {len(images)} images:\n{_lines(progress.errors)}")
        embeddings.append(embedding.cpu().numpy())
    return np.concatenate(embeddings)


def _logger(trt: ModuleType, progress: Progress):
    severity = trt.ILogger.Severity

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, level, message: str) -> None:
            if level in (severity.INTERNAL_ERROR, severity.ERROR):
                progress.errors.append(message)
            if level in (severity.INTERNAL_ERROR, severity.ERROR, severity.WARNING):
                progress.complaints += 1
                progress.report(message)

    return Logger()


def _monitor(trt: ModuleType, progress: Progress):
    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            try:
                progress.start(phase_name, parent_phase, num_steps)
            except BaseException as error:
                progress.failure = error

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                return progress.step(phase_name, step) and progress.failure is None
            except BaseException as error:
                progress.failure = error
                return False

        def phase_finish(self, phase_name: str) -> None:
            progress.steps.pop(phase_name, None)

    return Monitor()


def _parse(parser, onnx_path: Path) -> None:
    """Parse the file by its path, not its bytes, so that TensorRT finds the weights beside it."""
    if parser.parse_from_file(str(onnx_path)):
        return
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    lines = [
        f"node {error.node()} {error.node_name()!r} ({error.node_operator()}): {error.desc()} [{_code(error)}]"
        for error in errors
    ]
    raise PlanError(f"{onnx_path}: TensorRT's parser refuses it:\n{_lines(lines)}")


def _code(error) -> str:
    """The code of a parser's error by name: `UNSUPPORTED_NODE`; its attribute `name` is no text on 10.12."""
    return str(error.code()).rpartition(".")[2]


def _add_profile(builder, config, spec: PlanSpec) -> None:
    sizes = (spec.profile.min_batch_size, spec.profile.opt_batch_size, spec.profile.max_batch_size)
    profile = builder.create_optimization_profile()
    profile.set_shape(spec.input.name, *((size, *spec.input.dims) for size in sizes))
    if config.add_optimization_profile(profile) < 0:
        raise PlanError(f"{spec.onnx_path}: TensorRT refuses batch sizes {sizes} of {spec.input.name}")


def _load_timing_cache(config, path: Path, progress: Progress) -> None:
    """Start from earlier measurements; a file of another GPU or release, or a damaged one, is set aside.

    The bindings return an empty cache for such a file, and only the log says so.
    """
    data = path.read_bytes() if path.is_file() else b""
    complaints = progress.complaints
    cache = config.create_timing_cache(data)
    if cache is None or progress.complaints > complaints or not config.set_timing_cache(cache, False):
        progress.report(f"{path}: damaged, or made for another GPU or TensorRT; starting an empty timing cache")
        config.set_timing_cache(config.create_timing_cache(b""), False)
        progress.errors.clear()  # a build that fails later does so for other reasons


def _save_timing_cache(config, path: Path) -> None:
    cache = config.get_timing_cache()
    if cache is not None:
        write_atomically(path, bytes(memoryview(cache.serialize())))


def _lines(texts) -> str:
    return "\n".join(f"  {text}" for text in texts) or "  (no message; see its log above)"
