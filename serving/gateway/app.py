"""The gateway's routes."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

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
    async def running(self, app: Starlette) -> AsyncIterator[None]:
        self.scorer = Scorer(self.settings.url, self.settings.timeout)
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
    """The application for uvicorn; and for `metrics` of what never becomes a request, its Gateway."""
    gateway = Gateway(settings)
    page, docs = load_page("page.html"), load_page("docs.html")
    openapi = json_response(document(settings))
    routes = [
        Route("/score", gateway.score, methods=["POST"]),
        Route("/invocations", gateway.invocations, methods=["POST"]),
        Route("/heads", gateway.heads),
        Route("/token", gateway.token),
        Route("/health", gateway.health),
        Route("/ping", gateway.ping),
        Route("/metrics", gateway.counts),
        Route("/", _showing(page)),
        Route("/docs", _showing(docs)),
        Route("/openapi.json", lambda request: openapi),
    ]
    handlers = {Problem: _refuse, HTTPException: _no_route, Exception: _internal}
    app = Starlette(routes=routes, exception_handlers=handlers, lifespan=gateway.running)
    app.router.redirect_slashes = False
    return Front(app, gateway, {route.path for route in routes})


class Front:
    """Refuses requests that two programs may read in two ways, and counts all."""

    def __init__(self, app: ASGIApp, gateway: Gateway, paths: set[str]) -> None:
        self.app, self.gateway, self.metrics, self.paths = app, gateway, gateway.metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            if fault := fault_of(scope):
                close = {"Connection": "close"}
                await problem_response(problem_json("BAD_HTTP", fault), close)(scope, receive, counted)
            elif self.gateway.is_inside(scope) and scope["path"] != "/metrics":
                problem = problem_json("NOT_FOUND", "this port has /metrics alone")
                await problem_response(problem)(scope, receive, counted)
            else:
                await self.app(scope, receive, counted)
        finally:
            route = scope["path"] if scope["path"] in self.paths else "other"
            self.metrics.finished(route, status, time.perf_counter() - started)


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


def _showing(page: Page) -> Callable[[Request], Response]:
    def show(request: Request) -> Response:
        return Response(page.content, 200, page.headers, "text/html")

    return show


def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return problem_response(error.as_json(), error.headers)


def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        return problem_response(
            problem_json("METHOD_NOT_ALLOWED", f"{request.method[:20]} is not for this path"), error.headers
        )
    return problem_response(problem_json("NOT_FOUND", "there is nothing at this path; / and /docs show what there is"))


def _internal(request: Request, error: Exception) -> Response:
    return problem_response(problem_json("INTERNAL", "a fault of the gateway; its log says more"))
