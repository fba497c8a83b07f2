"""Triton's Python backend calls this: the text of proof.json beside it, read at each request.

So a rollout only replaces the file, and every server of the repository hands out the new one.
"""

from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils  # pyright: ignore[reportMissingImports] (inside Triton only)


class TritonPythonModel:
    def initialize(self, args):
        self.path = Path(args["model_repository"]) / args["model_version"] / "proof.json"

    def execute(self, requests):
        return [self.respond() for _ in requests]

    def respond(self):
        try:
            text = np.array([self.path.read_bytes()], dtype=np.object_)
        except OSError as error:
            failure = pb_utils.TritonError(f"proof.json: {error.strerror}", pb_utils.TritonError.INTERNAL)
            return pb_utils.InferenceResponse(error=failure)
        return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("proof", text)])
