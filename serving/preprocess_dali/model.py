"""Triton's Python backend calls this: `image` BYTES [B, 1] → `pixels` UINT8 [B, H, W, 3], JPEGs decoded by DALI.

In place of the model.py in model_repository/preprocess, for a recipe with `serving: {preprocess: dali}`: the same
tensors, limits and errors. All requests of a batch are decoded together; each is all or nothing by itself.
"""

import itertools
import json
from pathlib import Path

import image_counts  # pyright: ignore[reportMissingImports] (copied beside it)
import triton_python_backend_utils as pb_utils  # pyright: ignore[reportMissingImports] (inside Triton only)
from clip_pixels import BatchError, Transform  # pyright: ignore[reportMissingImports] (copied beside it)
from dali_batches import DESCRIPTIONS, Batches, Task, pixels_of_request
from dali_decoder import DaliDecoder
from metric_counters import Counters, Flusher, TritonRegistry  # pyright: ignore[reportMissingImports] (copied beside it)


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        transform = Transform.from_parameters(parameters)
        counters = Counters(TritonRegistry(pb_utils, image_counts.DESCRIPTIONS | DESCRIPTIONS))
        self.transforms = image_counts.RequestTransforms(transform, counters, Path(args["model_repository"]))
        gpu = int(args["model_instance_device_id"]) if args["model_instance_kind"] == "GPU" else None
        limits = {"threads": int(parameters["dali_threads"]), "max_batch_size": config["max_batch_size"]}
        decoder = DaliDecoder(Path(__file__).parent, gpu=gpu, **limits)
        if decoder.gpu != gpu:
            pb_utils.Logger.log_warn("preprocess: no mixed.dali, so JPEGs are decoded on the CPU; build where a GPU is")
        self.batches = Batches(transform, decoder, log=pb_utils.Logger.log_warn, **limits)
        self.flusher = Flusher(counters.flush)

    def finalize(self):
        self.flusher.stop()
        self.batches.close()

    def execute(self, requests):
        tasks = [self.tasks(request) for request in requests]
        results = iter(self.batches([task for of_request in tasks for task in of_request]))
        return [self.respond(list(itertools.islice(results, len(of_request)))) for of_request in tasks]

    def tasks(self, request):
        images = pb_utils.get_input_tensor_by_name(request, "image").as_numpy().reshape(-1)  # (B,) object
        transform = self.transforms.of(request.request_id(), images)
        return [Task(data, transform) for data in images]

    def respond(self, results):
        try:
            pixels = pixels_of_request(results)  # (B, H, W, 3) uint8
        except BatchError as error:
            refusal = pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=refusal)
        except Exception as error:  # an uncaught one would fail every request of the batch
            refusal = pb_utils.TritonError(f"preprocess: {type(error).__name__}", pb_utils.TritonError.INTERNAL)
            return pb_utils.InferenceResponse(error=refusal)
        return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("pixels", pixels)])
