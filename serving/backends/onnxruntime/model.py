"""A python-based Triton backend named `onnxruntime`, for servers that lack the native one.

Triton looks for libtriton_onnxruntime.so first and for this file second, so one config.pbtxt runs
on the native backend in NVIDIA's container and on this one with a pip-installed server. It honours
the native backend's settings: parameters intra_op_thread_count, inter_op_thread_count and
execution_mode, optimization.graph.level, default_model_filename, and uses CUDA on a GPU instance,
with the parameters of the gpu_execution_accelerator `cuda`.
Parameters whose names begin with `session.` are onnxruntime's own session settings.
"""

import json
import os
from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils  # pyright: ignore[reportMissingImports] (inside Triton only)

# The native backend's values of optimization.graph.level.
GRAPH_LEVELS = {
    -1: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    0: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    1: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}


def physical_cores():
    """Number of cores this process may use; two threads of one core count once."""
    allowed = os.sched_getaffinity(0)
    siblings = [Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") for cpu in allowed]
    try:
        return len({path.read_text() for path in siblings})
    except OSError:  # a container may hide them
        return len(allowed)


def session_options(config):
    """onnxruntime.SessionOptions from a model config (as a dict)."""
    parameters = {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
    options = onnxruntime.SessionOptions()
    # Counted here, because onnxruntime's own 0 also ties each thread to a core, which others may keep busy.
    options.intra_op_num_threads = int(parameters.get("intra_op_thread_count", 0)) or physical_cores()
    options.inter_op_num_threads = int(parameters.get("inter_op_thread_count", 0))
    if parameters.get("execution_mode") == "1":
        options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
    level = int(config.get("optimization", {}).get("graph", {}).get("level", 0))
    options.graph_optimization_level = GRAPH_LEVELS[level]
    for key, value in parameters.items():
        if key.startswith("session."):
            options.add_session_config_entry(key, value)
    return options


def providers(config, instance_kind, device_id):
    """CUDA on a GPU instance when this onnxruntime has it, with the config's options for it, else the CPU."""
    cpu = ["CPUExecutionProvider"]
    if instance_kind != "GPU" or "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return cpu
    accelerators = config.get("optimization", {}).get("execution_accelerators", {}).get("gpu_execution_accelerator", [])
    options = {"device_id": int(device_id)}
    for accelerator in accelerators:
        if accelerator["name"] == "cuda":
            options |= accelerator.get("parameters", {})
    return [("CUDAExecutionProvider", options), *cpu]


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        file_name = config.get("default_model_filename") or "model.onnx"
        self.session = onnxruntime.InferenceSession(
            os.path.join(args["model_repository"], args["model_version"], file_name),
            session_options(config),
            providers=providers(config, args["model_instance_kind"], args["model_instance_device_id"]),
        )
        self.batches = config.get("max_batch_size", 0) > 0
        self.input_names = [value.name for value in self.session.get_inputs()]

    def execute(self, requests):
        """All requests as one batch; without a batch dimension, one by one."""
        if self.batches:
            return self.run(requests)
        return [response for request in requests for response in self.run([request])]

    def run(self, requests):
        inputs = [
            [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self.input_names]
            for request in requests
        ]
        names = sorted({name for request in requests for name in request.requested_output_names()})
        batch = [arrays[0] if len(arrays) == 1 else np.concatenate(arrays) for arrays in zip(*inputs, strict=True)]
        try:
            outputs = self.session.run(names, dict(zip(self.input_names, batch, strict=True)))
        except Exception as error:  # an uncaught one would leave the stub in an unknown state
            message = f"onnxruntime: {type(error).__name__}: {str(error).splitlines()[0]:.200}"
            failure = pb_utils.TritonError(message, pb_utils.TritonError.INTERNAL)
            return [pb_utils.InferenceResponse(error=failure) for _ in requests]
        sizes = [len(arrays[0]) for arrays in inputs] if self.batches else [None]
        return list(self.split(requests, sizes, dict(zip(names, outputs, strict=True))))

    def split(self, requests, sizes, outputs):
        """One response per request, with its rows of the outputs it asked for."""
        start = 0
        for request, size in zip(requests, sizes, strict=True):
            rows = slice(start, None if size is None else start + size)
            start += size or 0
            names = [name for name in outputs if name in request.requested_output_names()]
            yield pb_utils.InferenceResponse(
                output_tensors=[pb_utils.Tensor(name, np.ascontiguousarray(outputs[name][rows])) for name in names]
            )
