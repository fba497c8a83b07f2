"""Triton's Python backend calls this: `image` BYTES [B, 1] → `pixels` UINT8 [B, H, W, 3].

One request is all or nothing: if one of its images gets no pixels the request fails with
INVALID_ARG, naming each bad image; requests batched beside it are answered.
"""

import json
from pathlib import Path

import triton_python_backend_utils as pb_utils  # pyright: ignore[reportMissingImports] (inside Triton only)
from clip_pixels import BatchError, Transform
from image_counts import DESCRIPTIONS, RequestTransforms
from metric_counters import Counters, Flusher, TritonRegistry


class TritonPythonModel:
    def initialize(self, args):
        parameters = json.loads(args["model_config"])["parameters"]
        transform = Transform.from_parameters({key: value["string_value"] for key, value in parameters.items()})
        counters = Counters(TritonRegistry(pb_utils, DESCRIPTIONS))
        self.transforms = RequestTransforms(transform, counters, Path(args["model_repository"]))
        self.flusher = Flusher(counters.flush)

    def finalize(self):
        self.flusher.stop()

    def execute(self, requests):
        return [self.respond(request) for request in requests]

    def respond(self, request):
        try:
            images = pb_utils.get_input_tensor_by_name(request, "image").as_numpy().reshape(-1)  # (B,) object
            pixels = self.transforms.of(request.request_id(), images).batch(images)  # (B, H, W, 3) uint8
        except BatchError as error:
            refusal = pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=refusal)
        except Exception as error:  # an uncaught one would fail every request of the batch
            refusal = pb_utils.TritonError(f"preprocess: {type(error).__name__}", pb_utils.TritonError.INTERNAL)
            return pb_utils.InferenceResponse(error=refusal)
        return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("pixels", pixels)])
