"""A stand-in for NVIDIA's `tensorrt` module, which cannot be installed or run where these tests run.

It has the names and parameter names of the real 10.12 and 11.4 bindings that the build uses, and no others: what does
not exist there is an AttributeError or TypeError here too, also when it is set. It computes nothing; it records what
it was asked, and plays a builder that succeeds, fails, or is stopped. Where the real bindings surprise, it does as they
do (`make check-tensorrt` runs them): TF32 is on unless it is cleared, an unusable timing cache comes back empty with
lines in the log, an exception in a callback is swallowed and ends the build, and 10.12's error codes have no name.
"""

from __future__ import annotations

import ctypes
import enum
import json
import types
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Script:
    """The behaviour of the fake, and a record of its calls."""

    version: str = "10.12.0.36"
    parser_errors: tuple[tuple[int, str, str, str], ...] = ()  # node, its name, its operator, what is wrong
    builds: bool = True
    steps: int = 3
    on_step: object = None  # called before each step is reported
    embedding: tuple[float, ...] = ()  # what each image becomes
    loads: bool = True
    seen: dict = field(default_factory=dict)


class Severity(enum.Enum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class ILogger:
    Severity = Severity

    def __init__(self) -> None:
        self.ready = True  # pybind11 refuses an object whose base was not initialised

    def log(self, severity: Severity, msg: str) -> None:
        raise NotImplementedError


class IProgressMonitor:
    def __init__(self) -> None:
        self.ready = True

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        raise NotImplementedError

    def step_complete(self, phase_name: str, step: int) -> bool:
        raise NotImplementedError

    def phase_finish(self, phase_name: str) -> None:
        raise NotImplementedError


class MemoryPoolType(enum.Enum):
    WORKSPACE = 0


class ErrorCode:
    """UNSUPPORTED_NODE as pybind11 shows it: on 10.12 its attribute `name` is an object of C."""

    def __init__(self, version: str) -> None:
        self.name = object() if version.startswith("10.12.") else "UNSUPPORTED_NODE"

    def __str__(self) -> str:
        return "ErrorCode.UNSUPPORTED_NODE"


class BuilderFlag(enum.Enum):
    TF32 = 6


class Flag(int):
    """A member of a pybind11 enum: it converts to int and has a name."""


def creation_flags(version: str) -> types.SimpleNamespace:
    """The flags of this version: 11 accepts and ignores the flag, and numbers it differently."""
    number = 0 if version.startswith("11.") else 1
    return types.SimpleNamespace(STRONGLY_TYPED=Flag(number))


class ParserError:
    __slots__ = ("_error", "_version")

    def __init__(self, error: tuple[int, str, str, str], version: str) -> None:
        self._error, self._version = error, version

    def node(self) -> int:
        return self._error[0]

    def node_name(self) -> str:
        return self._error[1]

    def node_operator(self) -> str:
        return self._error[2]

    def desc(self) -> str:
        return self._error[3]

    def code(self) -> ErrorCode:
        return ErrorCode(self._version)


class IOptimizationProfile:
    __slots__ = ("shapes",)

    def __init__(self) -> None:
        self.shapes: dict[str, tuple] = {}

    def set_shape(self, input: str, min: tuple, opt: tuple, max: tuple) -> None:
        assert all(isinstance(size, int) for shape in (min, opt, max) for size in shape)
        self.shapes[input] = (min, opt, max)


class ITimingCache:
    __slots__ = ("entries",)

    def __init__(self, entries: list[str]) -> None:
        self.entries = entries

    def serialize(self) -> bytearray:  # the real IHostMemory is a buffer as well
        return bytearray(json.dumps(self.entries).encode())


class IBuilderConfig:
    __slots__ = ("_cache", "_flags", "_logger", "_script", "pools", "profiles", "progress_monitor")

    def __init__(self, script: Script, logger: ILogger) -> None:
        self._script, self._logger, self._cache = script, logger, None
        self._flags = {BuilderFlag.TF32}
        self.pools: dict[MemoryPoolType, int] = {}
        self.profiles: list[IOptimizationProfile] = []
        self.progress_monitor: IProgressMonitor | None = None

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
        self.pools[MemoryPoolType(pool)] = pool_size

    def set_flag(self, flag: BuilderFlag) -> None:
        self._flags.add(BuilderFlag(flag))

    def clear_flag(self, flag: BuilderFlag) -> None:
        self._flags.discard(BuilderFlag(flag))

    def get_flag(self, flag: BuilderFlag) -> bool:
        return flag in self._flags

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        low, opt, high = zip(*profile.shapes.values(), strict=True)
        if not low <= opt <= high:
            return -1
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache:
        try:
            return ITimingCache(json.loads(serialized_timing_cache or b"[]"))
        except ValueError:
            self._logger.log(Severity.ERROR, "Error Code 1: Cuda Runtime (in catchCudaError)")
            self._logger.log(Severity.WARNING, "Failed to deserialize timing cache. Returning an empty timing cache.")
            return ITimingCache([])

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        if not ignore_mismatch and "another GPU" in cache.entries:
            return False
        self._cache = cache
        return True

    def get_timing_cache(self) -> ITimingCache | None:
        return self._cache


class INetworkDefinition:
    __slots__ = ("strongly_typed",)


class OnnxParser:
    __slots__ = ("_script",)
    script: Script

    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        assert logger.ready
        self._script = self.script

    def parse_from_file(self, model: str) -> bool:
        assert isinstance(model, str)
        self._script.seen["parsed"] = model
        return Path(model).is_file() and not self._script.parser_errors

    @property
    def num_errors(self) -> int:
        return len(self._script.parser_errors)

    def get_error(self, index: int) -> ParserError:
        return ParserError(self._script.parser_errors[index], self._script.version)


class Builder:
    __slots__ = ("_logger", "_script")
    script: Script

    def __init__(self, logger: ILogger) -> None:
        assert logger.ready
        self._script, self._logger = self.script, logger

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        network = INetworkDefinition()
        strongly_typed = 1 << creation_flags(self._script.version).STRONGLY_TYPED
        network.strongly_typed = flags == strongly_typed or self._script.version.startswith("11.")
        return network

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig(self._script, self._logger)

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> bytearray | None:
        self._script.seen |= {
            "strongly_typed": network.strongly_typed,
            "pools": config.pools,
            "tf32": config.get_flag(BuilderFlag.TF32),
            "shapes": [profile.shapes for profile in config.profiles],
        }
        cache, monitor = config.get_timing_cache(), config.progress_monitor
        assert cache is not None
        assert monitor is not None
        assert monitor.ready
        self._script.seen["timings_before"] = list(cache.entries)
        monitor.phase_start("Building Engine", None, self._script.steps)
        going_on = all(self._step(monitor, cache, step) for step in range(self._script.steps))
        monitor.phase_finish("Building Engine")
        if not self._script.builds:
            self._logger.log(Severity.ERROR, "Could not find any implementation for node MatMul_7")
        return bytearray(b"a plan") if going_on and self._script.builds else None

    def _step(self, monitor: IProgressMonitor, cache: ITimingCache, step: int) -> bool:
        cache.entries.append(f"layer {step}")
        if callable(self._script.on_step):
            self._script.on_step()
        try:
            return monitor.step_complete("Building Engine", step)
        except BaseException:  # so do the bindings
            return False


class IExecutionContext:
    __slots__ = ("_addresses", "_images", "_script")

    def __init__(self, script: Script) -> None:
        self._script, self._images, self._addresses = script, 0, {}

    def set_input_shape(self, name: str, shape: tuple) -> bool:
        self._script.seen.setdefault("batches", []).append(shape)
        self._images = shape[0]
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        values = self._script.embedding * self._images
        target = (ctypes.c_float * len(values)).from_address(self._addresses["embedding"])
        target[:] = values
        return True


class ICudaEngine:
    __slots__ = ("_script",)
    names = ("pixels", "embedding")

    def __init__(self, script: Script) -> None:
        self._script = script

    @property
    def num_io_tensors(self) -> int:
        return len(self.names)

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def create_execution_context(self) -> IExecutionContext:
        return IExecutionContext(self._script)


class Runtime:
    __slots__ = ("_logger", "_script")
    script: Script

    def __init__(self, logger: ILogger) -> None:
        assert logger.ready
        self._script, self._logger = self.script, logger

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        self._script.seen["loaded"] = bytes(serialized_engine)
        return ICudaEngine(self._script) if self._script.loads else None


def fake_tensorrt(script: Script) -> types.ModuleType:
    """A module that follows `script`."""
    module, kinds = types.ModuleType("tensorrt"), (Builder, OnnxParser, Runtime)
    scripted = {kind.__name__: type(kind.__name__, (kind,), {"script": script, "__slots__": ()}) for kind in kinds}
    module.__dict__.update(
        __version__=script.version,
        BuilderFlag=BuilderFlag,
        ILogger=ILogger,
        IProgressMonitor=IProgressMonitor,
        MemoryPoolType=MemoryPoolType,
        NetworkDefinitionCreationFlag=creation_flags(script.version),
        **scripted,
    )
    return module
