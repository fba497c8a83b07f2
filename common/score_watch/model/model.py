"""Triton's Python backend calls this: a head's outputs → the same outputs, counted.

The tensors go on as they came; numbers are set aside and counted by a thread. Whatever goes wrong with
counting, the request is answered.
"""

import contextlib
import json

import triton_python_backend_utils as pb_utils  # pyright: ignore[reportMissingImports] (inside Triton only)
from metric_counters import PROBE_ID, Flusher, TritonRegistry  # pyright: ignore[reportMissingImports] (copied beside it)
from score_counts import DESCRIPTIONS, ScoreCounts, WatchedHead

PASSED = ("score", "decision", "revision")


class TritonPythonModel:
    def initialize(self, args):
        parameters = json.loads(args["model_config"])["parameters"]
        watched = WatchedHead.from_parameters({key: value["string_value"] for key, value in parameters.items()})
        self.counts = ScoreCounts(watched, TritonRegistry(pb_utils, DESCRIPTIONS))
        self.flusher = Flusher(self.counts.flush)

    def finalize(self):
        self.flusher.stop()

    def execute(self, requests):
        return [self.respond(request) for request in requests]

    def respond(self, request):
        tensors = {tensor.name(): tensor for tensor in request.inputs()}
        if request.request_id() != PROBE_ID:
            with contextlib.suppress(Exception):
                self.counts.record({name: tensor.as_numpy() for name, tensor in tensors.items()})
        return pb_utils.InferenceResponse(output_tensors=[tensors[name] for name in PASSED])
