"""The routes of the page: JSON of a `Review`, and pictures as JPEG. Nothing is read from or sent to another machine.

A change is answered with 200 once it is on the disk. One that cannot be made is answered with `{"detail": …}`, which
the page shows: 400 for what cannot be, 410 for a picture that is no longer there, 500 where it cannot be written.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from clipsieve.exceptions import AnswersRefused, ClipsieveError, ImageRejected, InputRefused, PictureGone
from clipsieve.images import MAX_IMAGE_BYTES
from clipsieve.pages import assembled_page, element_hashes
from clipsieve.review.access import Door
from clipsieve.review.answers import KINDS, Kind
from clipsieve.review.images import THUMBNAIL, ImageCache
from clipsieve.review.queues import QUEUES, SORTS, Queue, Sort
from clipsieve.review.session import Review

_MOST_BYTES = 2**16
_MOST_ROWS = 400
_T = TypeVar("_T")


class BadRequest(ClipsieveError):
    """The page, or whoever else, sent what no page sends."""


def create_app(review: Review, images: ImageCache, port: int, token: str) -> ASGIApp:
    """The application for uvicorn."""
    routes = Routes(review, images)
    get = [
        Route("/", _page()),
        Route("/state", routes.state),
        Route("/order", routes.order),
        Route("/rows", routes.rows),
        Route("/pair", routes.pair),
        Route("/thumbnail/{place:int}", routes.thumbnail),
        Route("/picture/{place:int}", routes.picture),
    ]
    changes = {
        "/answer": routes.answer,
        "/choose": routes.choose,
        "/pass": routes.pass_pair,
        "/undo": routes.undo,
        "/train": routes.train,
        "/put-back": routes.put_back,
        "/forget-lost": routes.forget_lost,
        "/score": routes.score,
    }
    post = [Route(path, change, methods=["POST"]) for path, change in changes.items()]
    app = Starlette(
        routes=[*get, *post],
        exception_handlers={
            PictureGone: _refusing(410),
            ImageRejected: _refusing(404),
            FileNotFoundError: _gone,
            AnswersRefused: _refusing(500),
            ClipsieveError: _refusing(400),
            ClientDisconnect: _gone,
        },
    )
    return Door(app, port, token)


class Routes:
    """The answers to requests; those that read files do so in threads."""

    def __init__(self, review: Review, images: ImageCache) -> None:
        self._review, self._images = review, images

    async def state(self, request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(self._review.state))

    async def order(self, request: Request) -> Response:
        query = request.query_params
        queue: Queue = _one_of(QUEUES, query.get("queue", "all"))
        sort: Sort = _one_of(SORTS, query.get("sort", "highest"))
        kind: Kind = _one_of(KINDS, query.get("kind", "label"))
        order = await run_in_threadpool(self._review.order, queue, sort, query.get("column"), kind)
        return JSONResponse({"ids": order.places.tolist(), "note": order.note})

    async def rows(self, request: Request) -> Response:
        try:
            places = [int(each) for each in request.query_params.get("ids", "").split(",") if each][:_MOST_ROWS]
        except ValueError:
            raise BadRequest("ids are numbers with commas between them") from None
        return JSONResponse(await self._rows(places, request))

    async def pair(self, request: Request) -> Response:
        pair = await run_in_threadpool(self._review.pair, request.query_params.get("column"))
        if pair is None:
            return JSONResponse({"rows": [], "note": "No two pictures are left to compare."})
        return JSONResponse({"rows": await self._rows(pair, request), "note": ""})

    async def thumbnail(self, request: Request) -> Response:
        path = self._review.path(request.path_params["place"])
        return _image(await run_in_threadpool(self._images.jpeg, path, THUMBNAIL), "image/jpeg")

    async def picture(self, request: Request) -> Response:
        path = self._review.path(request.path_params["place"])
        return _image(*await run_in_threadpool(self._images.large, path))

    async def answer(self, request: Request) -> Response:
        body = await _json(request)
        place = _number(body, "id")
        kind: Kind = _one_of(KINDS, body.get("kind"))
        value = body.get("value")
        if value is not None and not isinstance(value, str):
            raise BadRequest("value is a text or null")
        await run_in_threadpool(self._review.answer, place, kind, value)
        return JSONResponse((await self._rows([place], request))[0])

    async def choose(self, request: Request) -> Response:
        body = await _json(request)
        await run_in_threadpool(self._review.choose, _number(body, "winner"), _number(body, "loser"))
        return JSONResponse({})

    async def pass_pair(self, request: Request) -> Response:
        body = await _json(request)
        self._review.pass_pair(_number(body, "one"), _number(body, "other"))
        return JSONResponse({})

    async def undo(self, request: Request) -> Response:
        undone = await run_in_threadpool(self._review.undo)
        return JSONResponse({"undone": undone, "rows": await self._rows(undone["ids"] if undone else [], request)})

    async def train(self, request: Request) -> Response:
        await run_in_threadpool(self._review.train)
        return JSONResponse({})

    async def put_back(self, request: Request) -> Response:
        return JSONResponse({"count": await run_in_threadpool(self._review.answers.put_back)})

    async def forget_lost(self, request: Request) -> Response:
        await run_in_threadpool(self._review.answers.forget_lost)
        return JSONResponse({})

    async def score(self, request: Request) -> Response:
        server = self._review.server
        if server is None:
            raise InputRefused("a dropped picture is scored by a server: start `clipsieve review` with --url HOST:PORT")
        data = await _body(request, MAX_IMAGE_BYTES)
        return JSONResponse(await run_in_threadpool(server.one, data))

    async def _rows(self, places: Any, request: Request) -> list[dict[str, Any]]:
        return await run_in_threadpool(self._review.rows, list(places), request.query_params.get("column"))


def _image(data: bytes, media_type: str) -> Response:
    return Response(data, media_type=media_type, headers={"Cache-Control": "private, max-age=600"})


def _page() -> Callable[[Request], Response]:
    text = assembled_page("clipsieve.review", "page.html")
    policy = (
        f"default-src 'none'; script-src {element_hashes(text, 'script')}; style-src {element_hashes(text, 'style')}; "
        "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    content = text.encode()
    return lambda request: Response(content, media_type="text/html", headers={"Content-Security-Policy": policy})


def _refusing(status: int) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def refuse(request: Request, error: Exception) -> Response:
        return JSONResponse({"detail": str(error)}, status)

    return refuse


async def _gone(request: Request, error: Exception) -> Response:
    return JSONResponse({"detail": "the file is no longer there"}, 410)


async def _body(request: Request, most: int) -> bytes:
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > most:
            raise BadRequest(f"more than {most} bytes")
    return bytes(data)


async def _json(request: Request) -> dict[str, Any]:
    try:
        body = json.loads(await _body(request, _MOST_BYTES))
    except (ValueError, RecursionError):
        raise BadRequest("the body is not JSON") from None
    if not isinstance(body, dict):
        raise BadRequest("the body is no JSON object")
    return body


def _number(body: dict[str, Any], name: str) -> int:
    value = body.get(name)
    if type(value) is not int:
        raise BadRequest(f"{name} is the number of a picture, found {value!r:.40}")
    return value


def _one_of(values: tuple[_T, ...], value: Any) -> _T:
    for each in values:
        if each == value:
            return each
    raise BadRequest(f"{value!r:.40} is none of {', '.join(map(str, values))}")
