"""The gateway's routes."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.gateway.answers import head_json, result_json
from serving.gateway.bodies import BodyLimits
from serving.gateway.inputs import Pictures, read_mlflow, read_pictures
from serving.gateway.limits import Rates, Room, Share
from serving.gateway.metrics import Metrics
from serving.gateway.openapi import document
from serving.gateway.page import Page, load_page
from serving.gateway.problems import Problem, problem_json, problem_response
from serving.gateway.scoring import Scorer
from serving.gateway.settings import Settings
from serving.gateway.tokens import Doorkeeper

Read = Callable[[Request, BodyLimits, Share], Awaitable[Pictures]]

_MOST_HEADERS = 100
_LONGEST_ADDRESS = 8192
_NO_STORE = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


class Gateway:
    """The state behind the routes, one for a process."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.doorkeeper = Doorkeeper(settings.tokens)
        self.rates = Rates(settings.rate, settings.burst)
        self.requests = Room(settings.concurrency, "places for requests")
        self.memory = Room(int(settings.memory_mib * 2**20), "bytes for bodies")
        self.limits = BodyLimits(settings.max_bytes, settings.max_files, settings.body_timeout)
        self.scorer: Scorer | None = None
        self.metrics.gauges["requests_in_flight"] = ("Requests that are read or scored.", lambda: self.requests.taken)
        self.metrics.gauges["body_bytes"] = ("Bytes of bodies that are held.", lambda: self.memory.taken)

    @property
    def triton(self) -> Scorer:
        assert self.scorer is not None, "the application has not started"
        return self.scorer

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        self.scorer = Scorer(self.settings.url, self.settings.timeout)
        gc.freeze()  # what is there now stays: no collection goes through it again
        try:
            yield
        finally:
            await self.scorer.close()

    def caller(self, request: Request) -> str:
        """The name of whoever calls. Raises Problem: UNAUTHORIZED."""
        return self.doorkeeper.name_of(request.headers.get("authorization", ""))

    async def score(self, request: Request) -> Response:
        results, pictures = await self._results(request, read_pictures)
        if pictures.is_list:
            return json_response(results)
        (result,) = results
        return problem_response(result["error"]) if "error" in result else json_response(result)

    async def invocations(self, request: Request) -> Response:
        results, _ = await self._results(request, read_mlflow)
        return json_response({"predictions": results})

    async def _results(self, request: Request, read: Read) -> tuple[list[dict[str, Any]], Pictures]:
        name = self.caller(request)
        self.rates.check(name)
        with self.requests.share() as place, self.memory.share() as memory:
            place.take(1)
            pictures = await read(request, self.limits, memory)
            self.rates.spend(name, len(pictures.pictures))
            self.metrics.received_bytes += memory.taken
            heads = await self.triton.heads(pictures.heads)
            scores = await self.triton.score([picture.data for picture in pictures.pictures], heads)
        results = [
            result_json(picture.name, score, heads) for picture, score in zip(pictures.pictures, scores, strict=True)
        ]
        for result in results:
            self.metrics.images[result["error"]["code"] if "error" in result else "scored"] += 1
        return results, pictures

    async def heads(self, request: Request) -> Response:
        self.caller(request)
        return json_response([head_json(head) for head in await self.triton.heads()])

    async def token(self, request: Request) -> Response:
        """Whose token this is: proxies ask before they let a request through to Triton itself."""
        return json_response({"name": self.caller(request)})

    def is_inside(self, scope: Scope) -> bool:
        """True for a request to the port of the metrics, which is not shown to the world."""
        port = self.settings.metrics_port
        return port != 0 and scope["server"][1] == port

    async def health(self, request: Request) -> Response:
        health = await self.triton.health.check()
        answer = {"status": health.status}
        with suppress(Problem):  # the message names addresses and processors: for whoever may come in
            self.caller(request)
            answer["message"] = health.message
        return json_response(answer, 200 if health.ok else 503)

    async def ping(self, request: Request) -> Response:
        if not await self.triton.health.ping():
            raise Problem("SERVER_UNAVAILABLE", "Triton does not answer, or is not ready")
        return PlainTextResponse("\n", headers=_NO_STORE)

    async def counts(self, request: Request) -> Response:
        if not self.is_inside(request.scope):
            self.caller(request)
        return PlainTextResponse(self.metrics.text(), media_type="text/plain; version=0.0.4", headers=_NO_STORE)


def create_app(settings: Settings) -> ASGIApp:
    """The application for uvicorn."""
    gateway = Gateway(settings)
    openapi = json_response(document(settings))
    routes = [
        Route("/score", "POST", gateway.score),
        Route("/invocations", "POST", gateway.invocations),
        Route("/heads", "GET", gateway.heads),
        Route("/token", "GET", gateway.token),
        Route("/health", "GET", gateway.health),
        Route("/ping", "GET", gateway.ping),
        Route("/metrics", "GET", gateway.counts),
        Route("/", "GET", _showing(load_page("page.html"))),
        Route("/docs", "GET", _showing(load_page("docs.html"))),
        Route("/openapi.json", "GET", _answering(openapi)),
    ]
    return Front(gateway, routes)


@dataclass(frozen=True)
class Route:
    """What answers at a path."""

    path: str
    method: str
    answer: Callable[[Request], Awaitable[Response]]

    @property
    def methods(self) -> tuple[str, ...]:
        return ("GET", "HEAD") if self.method == "GET" else (self.method,)


class Front:
    """Refuses requests that two programs may read in two ways, hands the others to their route, and counts all.

    It does the work of Starlette's router and its layers for exceptions, which cost a request as much as its scores.
    """

    def __init__(self, gateway: Gateway, routes: Sequence[Route]) -> None:
        self.gateway, self.metrics = gateway, gateway.metrics
        self.routes = {route.path: route for route in routes}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        started, fault = time.perf_counter(), None
        try:
            response = await self._answer(scope, receive)
        except Exception as error:
            response, fault = _internal(), error
        await response(scope, receive, send)
        path = scope["path"] if scope["path"] in self.routes else "other"
        self.metrics.finished(path, response.status_code, time.perf_counter() - started)
        if fault is not None:
            raise fault  # uvicorn writes it to the log

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        async with self.gateway.running():
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})

    async def _answer(self, scope: Scope, receive: Receive) -> Response:
        if fault := fault_of(scope):
            return problem_response(problem_json("BAD_HTTP", fault), {"Connection": "close"})
        route = self.routes.get(scope["path"])
        if self.gateway.is_inside(scope) and scope["path"] != "/metrics":
            return problem_response(problem_json("NOT_FOUND", "this port has /metrics alone"))
        if route is None:
            detail = "there is nothing at this path; / and /docs show what there is"
            return problem_response(problem_json("NOT_FOUND", detail))
        if scope["method"] not in route.methods:
            problem = problem_json("METHOD_NOT_ALLOWED", f"{scope['method'][:20]} is not for this path")
            return problem_response(problem, {"Allow": ", ".join(route.methods)})
        try:
            return await route.answer(Request(scope, receive))
        except Problem as error:
            return problem_response(error.as_json(), error.headers)


def fault_of(scope: Scope) -> str | None:
    """Return what is wrong with a request's headers; None when all is plain.

    They may be too many, or such as two programs read differently: how long a body is, who is asked, and by whom.
    """
    names = [name for name, _ in scope["headers"]]
    if scope["http_version"] not in ("1.0", "1.1"):
        return f"HTTP/{scope['http_version'][:10]} is not spoken here"
    if len(names) > _MOST_HEADERS or len(scope["raw_path"]) + len(scope["query_string"]) > _LONGEST_ADDRESS:
        return f"more than {_MOST_HEADERS} headers, or an address of more than {_LONGEST_ADDRESS} bytes"
    if b"transfer-encoding" in names:
        if b"content-length" in names:
            return "Content-Length and Transfer-Encoding contradict each other"
        if scope["http_version"] != "1.1":
            return "Transfer-Encoding is of HTTP/1.1"
    for name in (b"host", b"content-length", b"content-type", b"authorization", b"transfer-encoding"):
        if names.count(name) > 1:
            return f"the header {name.decode()} is there twice"
    return None


def json_response(value: Any, status: int = 200) -> Response:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace") + b"\n"
    return Response(text, status, _NO_STORE, "application/json")


def _showing(page: Page) -> Callable[[Request], Awaitable[Response]]:
    return _answering(Response(page.content, 200, page.headers, "text/html"))


def _answering(response: Response) -> Callable[[Request], Awaitable[Response]]:
    """A route whose answer is always the same."""

    async def answer(request: Request) -> Response:
        return response

    return answer


def _internal() -> Response:
    return problem_response(problem_json("INTERNAL", "a fault of the gateway; its log says more"))
