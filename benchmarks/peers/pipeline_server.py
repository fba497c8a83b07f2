"""transformers' image-classification pipeline in a FastAPI endpoint, as its documentation has it.

    export MODEL=<a folder of save_pretrained>
    uvicorn --factory benchmarks.peers.pipeline_server:create_app

POST /score takes one uploaded file (`file`) and answers `{"score": 0.5}`, the first label's. The endpoint is a plain
function, so that FastAPI runs it in its thread pool and one request's decoding overlaps another's encoding.
"""

from __future__ import annotations

import os
from typing import Any

from fastapi import FastAPI, HTTPException, UploadFile
from PIL import Image, UnidentifiedImageError


def create_app() -> FastAPI:
    from transformers import pipeline  # pyright: ignore[reportMissingImports] (its own environment)

    classify: Any = pipeline("image-classification", model=os.environ["MODEL"], device="cpu")
    app = FastAPI()

    @app.post("/score")
    def score(file: UploadFile) -> dict[str, float]:
        try:
            return {"score": classify(Image.open(file.file))[0]["score"]}
        except (UnidentifiedImageError, OSError) as error:
            raise HTTPException(400, f"not an image: {error}") from error

    return app
