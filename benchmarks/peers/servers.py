"""The peers that are servers, and clipsieve's: how each is started, asked for one picture, and read."""

from __future__ import annotations

import base64
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from benchmarks.peers import vit_classifier
from benchmarks.peers.environments import ENVIRONMENTS, PeerError
from benchmarks.peers.hugging_face import write_folder
from benchmarks.peers.load import REQUEST_TIMEOUT_S, Ask, our_client
from benchmarks.peers.material import SCORE_TOLERANCE, Material, PictureAnswer
from benchmarks.peers.processes import Process
from build.encoder import make_encoder
from build.errors import BuildError
from build.head import build_head
from build.repository import install
from build.repository_check import RepositoryError
from clipsieve import AsyncClient
from common.manifest import ManifestError
from common.paths import head_folder
from recipes.build_section import Precision
from recipes.schema import Recipe, RecipeError
from recipes.serving_section import Goal
from serving import no_proxy
from serving.embedded import EmbeddedServer, ServerSettings, free_ports
from serving.triton_wheel import ServingError

CORES = os.cpu_count() or 1
HOST = "127.0.0.1"
SAVE_TIMEOUT_S = 300.0


class Server(ABC):
    """A running server that scores one picture a request."""

    @property
    @abstractmethod
    def pid(self) -> int:
        """Id of the process that started the others."""

    @property
    @abstractmethod
    def started_s(self) -> float:
        """Start time of that process, by time.perf_counter."""

    @abstractmethod
    def connect(self) -> AbstractAsyncContextManager[Ask]:
        """A client's connections."""

    @abstractmethod
    def check(self) -> None:
        """
        Raises:
            PeerError: it has ended.
        """

    async def examine(self, pictures: Sequence[bytes]) -> list[PictureAnswer]:
        """Answers to some pictures, as embeddings where the peer gives them."""
        async with self.connect() as ask:
            return [await ask(picture) for picture in pictures]


class HttpServer(Server):
    """Takes one picture in an HTTP request and answers with JSON."""

    def __init__(
        self, process: Process, url: str, body: Callable[[bytes], dict[str, Any]], read: Callable[[Any], PictureAnswer]
    ) -> None:
        self.process, self.url, self.body, self.read = process, url, body, read

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def started_s(self) -> float:
        return self.process.started_s

    def check(self) -> None:
        self.process.check()

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Ask]:
        timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:

            async def ask(picture: bytes) -> PictureAnswer:
                async with session.post(self.url, **self.body(picture)) as answer:
                    if answer.status != 200:
                        raise PeerError(f"HTTP {answer.status}: {(await answer.text())[:200]}")
                    return self.read(await answer.json())

            yield ask


class OurServer(Server):
    """clipsieve, asked through its own client."""

    def __init__(self, server: EmbeddedServer, head: str, started_s: float) -> None:
        self.server, self.head, self._started_s = server, head, started_s

    @property
    def pid(self) -> int:
        return self.server.pid

    @property
    def started_s(self) -> float:
        return self._started_s

    def check(self) -> None:
        if (status := self.server.poll()) is not None:
            raise PeerError(f"tritonserver ended with status {status}: {self.server.log_tail(1)}")

    def connect(self) -> AbstractAsyncContextManager[Ask]:
        return our_client(self.server.grpc_url, [self.head])

    async def examine(self, pictures: Sequence[bytes]) -> list[PictureAnswer]:
        async with AsyncClient(self.server.grpc_url) as client:
            results = await client.embed(list(pictures))
        for result in results:
            if result.error is not None:
                raise result.error
        return [PictureAnswer(embedding=result.vector) for result in results]


@dataclass(frozen=True)
class Service:
    """A kind of server, and how it may be started.

    Attributes:
        start: a running server from a number of workers and a folder for its files.
        workers: the numbers that are tried, of which the best is kept.
    """

    name: str
    start: Callable[[int, Path], AbstractContextManager[Server]]
    workers: tuple[int, ...] = (1,)
    minimum_cosine: float = 0.999
    tolerance: float = SCORE_TOLERANCE
    """Largest difference of its scores, where it gives no embeddings."""
    even_alone: bool = False
    """Compare its scores of pictures alone whose centre crop leaves out an even number of pixels."""
    material: Material | None = None
    """What it serves, where that is not what the others serve."""


def services(material: Material, classifier: Material) -> list[Service]:
    """clipsieve at both precisions and goals, then the others; at last those of the ViT-B/16 `classifier`."""
    several = tuple(sorted({1, min(2, CORES)}))
    return [
        Service("clipsieve fp32", lambda _, folder: start_ours(material, folder)),
        Service("clipsieve fp32 throughput", lambda _, folder: start_ours(material, folder, goal="throughput")),
        Service("clipsieve int8", lambda _, folder: start_ours(material, folder, "int8"), minimum_cosine=0.99),
        Service("clipsieve gateway", lambda _, folder: start_gateway(material, folder)),
        Service("FastAPI", lambda workers, folder: start_fastapi(material, folder, workers), several),
        Service("MLflow", lambda workers, folder: start_mlflow(material, folder, workers), several),
        Service("LitServe", lambda workers, folder: start_litserve(material, folder, workers), several),
        # It resizes with transformers, whose pixels are not quite open_clip's.
        Service("infinity", lambda _, folder: start_infinity(material, folder), minimum_cosine=0.99),
        Service("clipsieve ViT-B/16", lambda _, folder: start_ours(classifier, folder), material=classifier),
        Service(
            "clipsieve ViT-B/16 throughput",
            lambda _, folder: start_ours(classifier, folder, goal="throughput"),
            material=classifier,
        ),
        Service(
            "transformers ViT-B/16",
            lambda workers, folder: start_pipeline(classifier, folder, workers),
            several,
            tolerance=0.01,  # it resizes with torchvision, whose pixels are not quite Pillow's
            even_alone=True,
            material=classifier,
        ),
    ]


@contextmanager
def start_ours(
    material: Material, folder: Path, precision: Precision = "fp32", goal: Goal = "latency"
) -> Iterator[Server]:
    recipe = served_recipe(material, precision, goal)
    log = folder / f"tritonserver-{recipe.name}-{precision}-{goal}.log"
    try:
        models = installed_models(recipe, folder)
        started_s = time.perf_counter()
        with EmbeddedServer(models, ServerSettings.on_free_ports(log)) as server:
            yield OurServer(server, recipe.heads[0].name, started_s)
    except (BuildError, ManifestError, RecipeError, RepositoryError, ServingError) as error:
        raise PeerError(str(error)) from error


def served_recipe(material: Material, precision: Precision, goal: Goal) -> Recipe:
    """The recipe with another precision and goal."""
    build = material.recipe.build.model_copy(update={"precision": precision})
    serving = material.recipe.serving.model_copy(update={"goal": goal})
    return material.recipe.model_copy(update={"build": build, "serving": serving})


def installed_models(recipe: Recipe, folder: Path) -> Path:
    """A model repository of the recipe; made once."""
    models = folder / f"models-{recipe.name}-{recipe.build.precision}-{recipe.serving.goal}"
    if not models.is_dir():
        make_encoder(recipe)
        for head in recipe.heads:
            build_head(head_folder(recipe, head), recipe.build.opset)
        install(recipe, models, "onnx")
    return models


@contextmanager
def start_gateway(material: Material, folder: Path) -> Iterator[Server]:
    recipe = served_recipe(material, "fp32", "latency")
    try:
        models = installed_models(recipe, folder)
    except (BuildError, ManifestError, RecipeError, RepositoryError) as error:
        raise PeerError(str(error)) from error
    (port,) = free_ports(0)
    command = [sys.executable, "-m", "benchmarks.peers.gateway_server", str(models), str(port)]
    with Process(command, no_proxy.environment(), folder / "gateway.log") as process:
        yield HttpServer(
            process,
            f"http://{HOST}:{port}/score",
            _uploaded,
            lambda answer: PictureAnswer(score=answer["heads"][recipe.heads[0].name]["score"]),
        )


@contextmanager
def start_fastapi(material: Material, folder: Path, workers: int) -> Iterator[Server]:
    environment = ENVIRONMENTS["fastapi"]
    environment.check()
    (port,) = free_ports(0)
    command = [environment.bin / "uvicorn", "--factory", "benchmarks.peers.fastapi_server:create_app"]
    options = ["--host", HOST, "--port", str(port), "--workers", str(workers), "--no-access-log"]
    files = {"MODEL": material.model, "WEIGHTS": str(material.weights), "HEAD": str(material.head)}
    variables = environment.variables(CORES // workers) | files
    with Process([*command, *options], variables, folder / f"fastapi-{workers}.log") as process:
        yield HttpServer(process, f"http://{HOST}:{port}/score", _uploaded, _score)


@contextmanager
def start_litserve(material: Material, folder: Path, workers: int) -> Iterator[Server]:
    environment = ENVIRONMENTS["litserve"]
    environment.check()
    (port,) = free_ports(0)
    command = [environment.bin / "python", "-m", "benchmarks.peers.litserve_server", str(port), str(workers)]
    files = {"MODEL": material.model, "WEIGHTS": str(material.weights), "HEAD": str(material.head)}
    variables = environment.variables(CORES // workers) | files
    with Process(command, variables, folder / f"litserve-{workers}.log") as process:
        yield HttpServer(process, f"http://{HOST}:{port}/predict", _image_in_json, _score)


@contextmanager
def start_pipeline(material: Material, folder: Path, workers: int) -> Iterator[Server]:
    environment = ENVIRONMENTS["transformers"]
    environment.check()
    model = vit_classifier.write_folder(material.weights, material.head, material.view, folder / "vit")
    (port,) = free_ports(0)
    command = [environment.bin / "uvicorn", "--factory", "benchmarks.peers.pipeline_server:create_app"]
    options = ["--host", HOST, "--port", str(port), "--workers", str(workers), "--no-access-log"]
    variables = environment.variables(CORES // workers) | {"MODEL": str(model)}
    with Process([*command, *options], variables, folder / f"transformers-{workers}.log") as process:
        yield HttpServer(process, f"http://{HOST}:{port}/score", _uploaded, _score)


@contextmanager
def start_mlflow(material: Material, folder: Path, workers: int) -> Iterator[Server]:
    environment = ENVIRONMENTS["mlflow"]
    environment.check()
    model, variables = folder / "mlflow-model", environment.variables(CORES // workers)
    if not model.is_dir():
        files = [material.model, str(material.weights), str(material.head)]
        save = [environment.bin / "python", "-m", "benchmarks.peers.mlflow_model", str(model), *files]
        with Process(save, variables, folder / "mlflow-save.log") as process:
            process.wait(SAVE_TIMEOUT_S)
    (port,) = free_ports(0)
    command = [environment.bin / "mlflow", "models", "serve", "--model-uri", str(model), "--env-manager", "local"]
    options = ["--host", HOST, "--port", str(port), "--workers", str(workers)]
    with Process([*command, *options], variables, folder / f"mlflow-{workers}.log") as process:
        yield HttpServer(process, f"http://{HOST}:{port}/invocations", _row, _prediction)


@contextmanager
def start_infinity(material: Material, folder: Path) -> Iterator[Server]:
    environment = ENVIRONMENTS["infinity"]
    environment.check()
    model = write_folder(material.model, material.weights, folder / "hugging-face")
    (port,) = free_ports(0)
    command = [environment.bin / "infinity_emb", "v2", "--model-id", str(model), "--served-model-name", "clip"]
    options = ["--host", HOST, "--port", str(port), "--url-prefix", "", "--engine", "torch", "--device", "cpu"]
    plain = ["--no-bettertransformer", "--no-model-warmup", "--log-level", "warning"]
    with Process([*command, *options, *plain], environment.variables(CORES), folder / "infinity.log") as process:
        yield HttpServer(process, f"http://{HOST}:{port}/embeddings", _data_uri, _embedding)


def _uploaded(picture: bytes) -> dict[str, Any]:
    form = aiohttp.FormData()
    form.add_field("file", picture, filename="picture.jpg", content_type="image/jpeg")
    return {"data": form}


def _score(answer: Any) -> PictureAnswer:
    return PictureAnswer(score=float(answer["score"]))


def _image_in_json(picture: bytes) -> dict[str, Any]:
    return {"json": {"image": base64.b64encode(picture).decode()}}


def _row(picture: bytes) -> dict[str, Any]:
    return {"json": {"dataframe_split": {"columns": ["image"], "data": [[base64.b64encode(picture).decode()]]}}}


def _prediction(answer: Any) -> PictureAnswer:
    return PictureAnswer(score=float(answer["predictions"][0]))


def _data_uri(picture: bytes) -> dict[str, Any]:
    uri = f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}"
    return {"json": {"model": "clip", "modality": "image", "input": [uri]}}


def _embedding(answer: Any) -> PictureAnswer:
    return PictureAnswer(embedding=np.array(answer["data"][0]["embedding"], np.float32))
