"""open_clip and torch in a FastAPI endpoint: the script that most would write.

    export MODEL=ViT-B-32-quickgelu WEIGHTS=weights.pt HEAD=head.npz
    uvicorn --factory benchmarks.peers.fastapi_server:create_app

POST /score takes one uploaded file (`file`) and answers `{"score": 0.5}`. The endpoint is a plain function, so that
FastAPI runs it in its thread pool and one request's decoding overlaps another's encoding.
"""

from __future__ import annotations

import os

from fastapi import FastAPI, HTTPException, UploadFile
from PIL import UnidentifiedImageError

from benchmarks.peers.open_clip_classifier import Classifier


def create_app() -> FastAPI:
    classifier = Classifier(os.environ["MODEL"], os.environ["WEIGHTS"], os.environ["HEAD"])
    app = FastAPI()

    @app.post("/score")
    def score(file: UploadFile) -> dict[str, float]:
        try:
            return {"score": classifier.score(file.file.read())}
        except (UnidentifiedImageError, OSError) as error:
            raise HTTPException(400, f"not an image: {error}") from error

    return app
