"""The description of the gateway as an OpenAPI document, with an example of every request and answer."""

from __future__ import annotations

import base64
from typing import Any

from serving.gateway.problems import IMAGE_KINDS, KINDS, MEDIA_TYPE, REQUEST_KINDS, problem_json
from serving.gateway.settings import Settings
from serving.probe import tiny_png

_PNG = base64.b64encode(tiny_png()).decode()
_REVISION = "53de1b0a9f4c2e77"
_BINARY = {"score": 0.93, "decision": "block", "class": "nsfw", "revision": _REVISION}
_RESULT = {"image": "a.jpg", "heads": {"nsfw": _BINARY, "aesthetic": {"score": 5.8, "revision": "0c1df2a3b4958677"}}}
_FAILED = {"image": "b.txt", "error": problem_json("NOT_AN_IMAGE", "none of JPEG, PNG, WEBP, GIF, BMP")}


def document(settings: Settings) -> dict[str, Any]:
    """The OpenAPI 3.1 document of a gateway with these settings."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "clipsieve gateway",
            "version": "1",
            "description": (
                "Scores pictures with every head that the server has, or with those that `heads` names. A request "
                f"may have {settings.max_files} pictures and {settings.max_bytes} bytes. Every refusal is "
                "application/problem+json with a stable `code`."
            ),
        },
        "paths": {
            "/score": {"post": _score()},
            "/heads": {"get": _heads()},
            "/token": {"get": _token()},
            "/health": {"get": _health()},
            "/invocations": {"post": _invocations()},
            "/ping": {"get": _text("Whether the server is ready; no picture is scored.", "text/plain", "\n", 503)},
            "/metrics": {"get": _text("Counts of the gateway, for Prometheus.", "text/plain", "…", 401)},
        },
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}] if settings.tokens else [],
    }


def _score() -> dict[str, Any]:
    one_or_many = {"oneOf": [_ref("Result"), {"type": "array", "items": _ref("Result")}]}
    examples = {
        "one": {"summary": "one picture", "value": _RESULT},
        "many": {"summary": "several, of which one failed", "value": [_RESULT, _FAILED]},
    }
    return {
        "operationId": "score",
        "summary": "Score one picture or several.",
        "description": (
            "Raw bytes may also be sent as image/jpeg or any other image type. "
            "One picture of a form, of raw bytes or under `image` is answered by an object, or by its refusal with a "
            "status of its own. Several files of a form, or any number under `images`, are answered by a list with "
            "status 200, in which each has its heads or its error. A head of one number has `score` and `decision`; "
            "one of several numbers has `scores` and `decisions` by label; `class` is there when the head chooses "
            "one, a decision when it has thresholds."
        ),
        "parameters": [_HEADS_PARAMETER],
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {"schema": _FORM, "example": {"image": ["a.jpg", "b.txt"], "heads": "nsfw"}},
                "application/octet-stream": {"schema": _BYTES},
                "application/json": {
                    "schema": {"oneOf": [_ref("OneImage"), _ref("ManyImages")]},
                    "examples": {
                        "one": {"value": {"image": _PNG, "name": "grey.png"}},
                        "many": {"value": {"images": [{"image": _PNG, "name": "grey.png"}, _PNG], "heads": ["nsfw"]}},
                    },
                },
            },
        },
        "responses": _json_answer("The scores.", one_or_many, examples) | _refusals(KINDS),
    }


def _invocations() -> dict[str, Any]:
    examples = {
        "instances": {"value": {"instances": [_PNG]}},
        "inputs": {"value": {"inputs": {"image": [_PNG]}}},
        "dataframe_split": {"value": {"dataframe_split": {"columns": ["image"], "data": [[_PNG]]}}},
        "dataframe_records": {"value": {"dataframe_records": [{"image": _PNG}]}},
    }
    predictions = {"type": "object", "properties": {"predictions": {"type": "array", "items": _ref("Result")}}}
    return {
        "operationId": "invocations",
        "summary": "Score pictures in the requests of MLflow's scoring server.",
        "parameters": [_HEADS_PARAMETER],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"type": "object"}, "examples": examples}},
        },
        "responses": _json_answer(
            "A prediction for each row, in order; a picture that failed has its error there.",
            predictions,
            {"one": {"value": {"predictions": [_RESULT]}}},
        )
        | _refusals(REQUEST_KINDS),
    }


def _heads() -> dict[str, Any]:
    head = {
        "name": "nsfw",
        "task": "binary",
        "labels": ["nsfw"],
        "class_names": ["safe", "nsfw"],
        "thresholds": {
            "nsfw": [
                {"value": 0.31, "operating_point": "recall>=0.99"},
                {"value": 0.87, "operating_point": "precision>=0.95"},
            ]
        },
        "notice": None,
    }
    return {
        "operationId": "heads",
        "summary": "The heads that the server has, their labels and thresholds.",
        "responses": _json_answer("", {"type": "array", "items": _ref("Head")}, {"one": {"value": [head]}})
        | _refusals({code: KINDS[code] for code in ("UNAUTHORIZED", "SERVER_UNAVAILABLE")}),
    }


def _token() -> dict[str, Any]:
    return {
        "operationId": "token",
        "summary": "The name that a token was given to; a gateway without tokens calls everybody `everybody`.",
        "responses": _json_answer(
            "", _object({"name": {"type": "string"}}, ["name"]), {"one": {"value": {"name": "alice"}}}
        )
        | _refusals({"UNAUTHORIZED": KINDS["UNAUTHORIZED"]}),
    }


def _health() -> dict[str, Any]:
    examples = {"ok": {"value": {"status": "ok", "message": "scored a picture with nsfw in 21 ms"}}}
    answer = _json_answer("It scores, or is merely busy.", _ref("Health"), examples)
    failing = {"503": {"description": "It does not score.", "content": answer["200"]["content"]}}
    return {
        "operationId": "health",
        "summary": "Whether a picture can be scored, by scoring one.",
        "security": [],
        "responses": answer | failing,
    }


_HEADS_PARAMETER = {
    "name": "heads",
    "in": "query",
    "required": False,
    "description": "Names of the heads, with commas between them; all of them without it.",
    "schema": {"type": "string"},
    "example": "nsfw",
}
_BYTES = {"type": "string", "format": "binary"}
_FORM = {
    "type": "object",
    "properties": {
        "image": {"type": "array", "items": _BYTES, "description": "Files, under this or any other name of a field."},
        "heads": {"type": "string", "description": "Names of heads, with commas between them."},
    },
    "required": ["image"],
}


def _schemas() -> dict[str, Any]:
    text, number = {"type": "string"}, {"type": "number"}
    decision = {"enum": ["allow", "review", "block"]}
    base64 = {"type": "string", "description": "Base64 text of an encoded file, or a data: URI."}
    heads = {"type": "array", "items": text}
    status = {"enum": ["ok", "busy", "unavailable", "not_ready", "failing"]}
    return {
        "OneImage": _object({"image": base64, "name": text, "heads": heads}, ["image"]),
        "ManyImages": _object(
            {"images": {"type": "array", "items": {"oneOf": [base64, _ref("NamedImage")]}}, "heads": heads}, ["images"]
        ),
        "NamedImage": _object({"image": base64, "name": text}, ["image"]),
        "Result": _object(
            {
                "image": {"type": ["string", "null"], "description": "The file's name, if it has one."},
                "heads": {"type": "object", "additionalProperties": _ref("HeadScore")},
                "error": _ref("Problem"),
            },
            ["image"],
        ),
        "HeadScore": _object(
            {
                "score": number,
                "deviation": number,
                "scores": {"type": "object", "additionalProperties": number},
                "decision": decision,
                "decisions": {"type": "object", "additionalProperties": decision},
                "class": text,
                "revision": {"type": "string", "pattern": "^[0-9a-f]{16}$"},
            },
            ["revision"],
        ),
        "Head": _object(
            {
                "name": text,
                "task": {"enum": ["binary", "multiclass", "multilabel", "regression", "ranking"]},
                "labels": {"type": "array", "items": text},
                "class_names": {"type": "array", "items": text},
                "thresholds": {
                    "type": ["object", "null"],
                    "additionalProperties": {"type": "array", "items": _ref("Threshold")},
                },
                "notice": {"type": ["string", "null"]},
            },
            ["name", "task", "labels", "class_names"],
        ),
        "Threshold": _object({"value": number, "operating_point": text}, ["value", "operating_point"]),
        "Health": _object(
            {"status": status, "message": {"type": "string", "description": "For whoever has a token."}}, ["status"]
        ),
        "Problem": _object(
            {
                "type": text,
                "title": text,
                "status": {"type": "integer"},
                "code": {"type": "string", "enum": list(KINDS), "description": "; ".join(IMAGE_KINDS)},
                "detail": text,
            },
            ["type", "title", "status", "code", "detail"],
        ),
    }


def _object(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _json_answer(description: str, schema: dict[str, Any], examples: dict[str, Any]) -> dict[str, Any]:
    content = {"application/json": {"schema": schema, "examples": examples}}
    return {"200": {"description": description or "OK", "content": content}}


def _text(summary: str, media_type: str, example: str, refusal: int) -> dict[str, Any]:
    kinds = {code: kind for code, kind in KINDS.items() if kind.status == refusal and code != "SERVER_BUSY"}
    content = {media_type: {"schema": {"type": "string"}, "example": example}}
    return {"summary": summary, "responses": {"200": {"description": "OK", "content": content}} | _refusals(kinds)}


def _refusals(kinds: dict[str, Any]) -> dict[str, Any]:
    """An answer for each status, with an example of each code that has it."""
    answers: dict[str, Any] = {}
    for code, kind in kinds.items():
        answer = answers.setdefault(
            str(kind.status),
            {"description": "", "content": {MEDIA_TYPE: {"schema": _ref("Problem"), "examples": {}}}},
        )
        answer["description"] = " ".join([*answer["description"].split(), f"{code}"])
        answer["content"][MEDIA_TYPE]["examples"][code] = {"value": problem_json(code, kind.meaning)}
    return dict(sorted(answers.items()))
