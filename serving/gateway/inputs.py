"""The pictures of a request, in whichever form they come: a form, raw bytes, JSON, or the JSON of MLflow."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import anyio.to_thread
from starlette.requests import Request

from serving.gateway.bodies import BodyLimits, read_body
from serving.gateway.limits import Share
from serving.gateway.multipart import Part, read_form
from serving.gateway.problems import Problem

_MOST_JSON_VALUES = 10_000
"""A body with more brackets and commas is not parsed: no honest one has so many, and each costs memory."""
_LARGE_JSON_BYTES = 1 << 18
"""Larger bodies are parsed in a thread, so that others are answered meanwhile."""
_LONGEST_NAME = 255
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


@dataclass(frozen=True)
class Picture:
    """One picture to score."""

    data: bytes | memoryview
    """The encoded file, or its base64 text or data: URI."""
    name: str | None = None


@dataclass(frozen=True)
class Pictures:
    """The pictures that a request wants scored."""

    pictures: Sequence[Picture]
    heads: tuple[str, ...] | None
    """None is every head."""
    is_list: bool
    """True when the answer is a list, however many there are."""


async def read_pictures(request: Request, limits: BodyLimits, memory: Share) -> Pictures:
    """The pictures of POST /score.

    Raises:
        Problem: the request is none of the forms, or exceeds a limit.
    """
    content_type = request.headers.get("content-type", "")
    kind = content_type.partition(";")[0].strip().lower()
    heads = _heads_of_query(request)
    if kind == "multipart/form-data":
        body = await read_body(request, limits, memory)
        return _from_form(read_form(body, content_type, limits.max_files), heads, limits.max_files)
    if kind == "application/json":
        return _from_json(await _read_json(request, limits, memory), heads, limits.max_files)
    if kind.startswith("image/") or kind == "application/octet-stream":
        return Pictures([Picture(await read_body(request, limits, memory))], heads, False)
    raise Problem(
        "UNSUPPORTED_TYPE",
        f"Content-Type {kind[:60]!r}; send a form (curl -F image=@photo.jpg), raw bytes as application/octet-stream "
        "(curl --data-binary @photo.jpg -H 'Content-Type: application/octet-stream'), or application/json",
    )


async def read_mlflow(request: Request, limits: BodyLimits, memory: Share) -> Pictures:
    """The pictures of POST /invocations, in one of the four forms of MLflow's scoring server.

    Raises:
        Problem: as `read_pictures`.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Problem("UNSUPPORTED_TYPE", f"Content-Type {kind[:60]!r}; /invocations reads application/json")
    rows = _mlflow_rows(await _read_json(request, limits, memory))
    _check_count(len(rows), limits.max_files)
    return Pictures([_picture_of(row) for row in rows], _heads_of_query(request), True)


def _from_form(parts: Iterable[Part], heads: tuple[str, ...] | None, max_files: int) -> Pictures:
    options = [part for part in parts if part.is_option]
    if options:
        heads = _listed_heads(bytes(options[0].data).decode("utf-8", "replace"))
    files = [part for part in parts if not part.is_option]
    _check_count(len(files), max_files)
    pictures = [Picture(part.data, _clean_name(part.filename or part.name)) for part in files]
    return Pictures(pictures, heads, len(pictures) > 1)


def _from_json(document: Any, heads: tuple[str, ...] | None, max_files: int) -> Pictures:
    if not isinstance(document, dict) or ("image" in document) == ("images" in document):
        raise Problem("BAD_JSON", 'the JSON is {"image": "<base64>"} or {"images": ["<base64>", …]}')
    if unknown := sorted(set(document) - {"image", "images", "name", "heads"}):
        raise Problem("BAD_JSON", f"the JSON has a field {unknown[0][:60]!r}; known are image, images, name, heads")
    if "heads" in document:
        heads = _json_heads(document["heads"])
    if "image" in document:
        named = {"image": document["image"], "name": document.get("name")}
        return Pictures([_picture_of(named)], heads, False)
    rows = document["images"]
    if not isinstance(rows, list) or "name" in document:
        raise Problem("BAD_JSON", '"images" is a list of base64 texts, or of {"name": …, "image": "<base64>"}')
    _check_count(len(rows), max_files)
    return Pictures([_picture_of(row) for row in rows], heads, True)


def _picture_of(row: Any) -> Picture:
    """A picture from its base64 text, or from an object that names it."""
    name = None
    if isinstance(row, dict):
        row, name = row.get("image", row.get("b64")), row.get("name")
    if not isinstance(row, str) or not isinstance(name, str | None):
        raise Problem("BAD_JSON", f"a picture is a base64 text or data: URI, its name a text; found {_kind(row)}")
    return Picture(row.encode("utf-8", "replace"), name and _clean_name(name))


def _mlflow_rows(document: Any) -> list[Any]:
    forms = ("dataframe_split", "dataframe_records", "instances", "inputs")
    names = [name for name in forms if isinstance(document, dict) and name in document]
    if len(names) != 1:
        raise Problem("BAD_JSON", f"the JSON has one of {', '.join(forms)}")
    value = document[names[0]]
    if names[0] == "dataframe_split":
        value = _rows_of_split(value)
    if names[0] == "inputs" and isinstance(value, dict) and set(value) == {"image"}:
        value = value["image"]
    if not isinstance(value, list):
        raise Problem("BAD_JSON", f"{names[0]} holds no list of pictures")
    return [row[0] if isinstance(row, list) and len(row) == 1 else row for row in value]


def _rows_of_split(value: Any) -> list[Any]:
    columns = value.get("columns") if isinstance(value, dict) else None
    data = value.get("data") if isinstance(value, dict) else None
    if not isinstance(columns, list) or not isinstance(data, list) or columns.count("image") != 1:
        raise Problem("BAD_JSON", 'dataframe_split is {"columns": ["image"], "data": [["<base64>"], …]}')
    if not all(isinstance(row, list) and len(row) == len(columns) for row in data):
        raise Problem("BAD_JSON", f"each row of dataframe_split has {len(columns)} values, one for each column")
    return [dict(zip(map(str, columns), row, strict=True)) for row in data]


def _check_count(count: int, most: int) -> None:
    if not count:
        raise Problem("NO_IMAGE", "the request holds no picture")
    if count > most:
        raise Problem("TOO_MANY_FILES", f"{count} pictures; a request may have {most}")


async def _read_json(request: Request, limits: BodyLimits, memory: Share) -> Any:
    body = await read_body(request, limits, memory)
    if not body.strip():
        raise Problem("NO_IMAGE", "the request has no body")
    if body.count(b"[") + body.count(b"{") + body.count(b",") > _MOST_JSON_VALUES:
        raise Problem("BAD_JSON", f"more than {_MOST_JSON_VALUES} values")
    if len(body) < _LARGE_JSON_BYTES:
        return _parse_json(body)
    return await anyio.to_thread.run_sync(_parse_json, body)


def _parse_json(body: bytes) -> Any:
    try:
        return json.loads(body, object_pairs_hook=_object, parse_constant=_no_constant)
    except RecursionError:
        raise Problem("BAD_JSON", "brackets are nested too deeply") from None
    except ValueError as error:  # also bytes that are no UTF-8, and numbers of too many digits
        raise Problem("BAD_JSON", f"no JSON: {str(error)[:200]}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a field is there twice")
    return fields


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _heads_of_query(request: Request) -> tuple[str, ...] | None:
    if not request.scope["query_string"]:
        return None
    values = request.query_params.getlist("heads")
    return _listed_heads(",".join(values)) if values else None


def _listed_heads(text: str) -> tuple[str, ...] | None:
    names = tuple(name.strip()[:_LONGEST_NAME] for name in text.split(",") if name.strip())
    return names or None


def _json_heads(value: Any) -> tuple[str, ...] | None:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise Problem("BAD_JSON", f'"heads" is a list of names; found {_kind(value)}')
    return tuple(name[:_LONGEST_NAME] for name in value) or None


def _clean_name(name: str) -> str:
    """A name as it may stand in a log or on a page: it is shown, and never opened as a path."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", name)[:_LONGEST_NAME]


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "nothing"}
    return kinds.get(type(value), "a number")
