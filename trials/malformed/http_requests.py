"""Malformed HTTP requests for `image_score`, as hypothesis strategies: one per kind, each request wrong in one place.

What is known to end tritonserver 2.51 (known.py) is not drawn here.
"""

from __future__ import annotations

import base64
import gzip
import json
import struct
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from serving.probe import tiny_png
from trials.malformed.wire import Case

PATH = "/v2/models/image_score/infer"
LENGTH = "Inference-Header-Content-Length"
PICTURE = tiny_png()
TEXT = base64.b64encode(PICTURE).decode()
ELEMENT = struct.pack("<I", len(PICTURE)) + PICTURE  # as BYTES goes over the wire
WRAP = 2**32  # 2.51 keeps a batch size in 32 bits

Draw = Callable[[st.SearchStrategy], Any]
KINDS: dict[str, st.SearchStrategy[Case]] = {}

small_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**66), 2**66) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def kind(build: Callable[[Draw], Case]) -> Callable[[Draw], Case]:
    """Enter a function that draws a request into KINDS under its name."""
    KINDS[build.__name__] = st.composite(build)()
    return build


def message(body: bytes, headers: dict[str, str] | None = None, path: str = PATH, method: str = "POST") -> bytes:
    """A request as bytes; a header given replaces the right one, and one given as None is left out."""
    fields = {"Host": "localhost", "Content-Length": str(len(body)), "Connection": "close"} | (headers or {})
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items() if value is not None)]
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogatepass") + body


def document(**changes: Any) -> dict[str, Any]:
    """The right JSON, with fields of its input replaced; a field that is `...` is left out."""
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1, 1], "data": [TEXT]} | changes
    return {"inputs": [{key: value for key, value in tensor.items() if value is not ...}]}


def encode(value: Any) -> bytes:
    return json.dumps(value).encode()


def as_case(name: str, value: Any, **options: Any) -> Case:
    return Case(f"http {name}", message(encode(value)), **options)


def with_tail(tail: bytes, size: Any = None, header_length: Any = None, **headers: str) -> bytes:
    """A request whose tensor stands behind the JSON, as it is or with a lie about either's length."""
    size = len(tail) if size is None else size
    text = encode(document(data=..., parameters={"binary_data_size": size}))
    length = len(text) if header_length is None else header_length
    return message(text + tail, {LENGTH: str(length), **headers})


def is_wrong_shape(shape: Any) -> bool:
    """Check that a shape is wrong, and not 0 or 1 in 32 bits, which 2.51 takes for one picture."""
    plain = isinstance(shape, list) and all(isinstance(dim, int) and not isinstance(dim, bool) for dim in shape)
    return not (plain and len(shape) == 2 and shape[1] == 1 and shape[0] % WRAP in (0, 1))


@kind
def shape(draw: Draw) -> Case:
    dim = st.integers(-(2**65), 2**65) | st.sampled_from([-1, 0, 1, 2, 32, 33, 2**31, WRAP, WRAP + 2, 2**63 - 1, 2**63])
    one_column = dim.map(lambda batch: [batch, 1])
    wrong = draw((one_column | st.lists(dim, max_size=4) | small_json).filter(is_wrong_shape))
    return as_case("shape", document(shape=wrong))


@kind
def wrapped_shape(draw: Draw) -> Case:
    """A batch size that is 0 or 1 in 32 bits: the answer must be the score of the one picture that came."""
    batch = WRAP * draw(st.integers(0, 2**30)) + draw(st.booleans())
    return as_case("wrapped_shape", document(shape=[batch, 1]), tolerated=True)


@kind
def datatype(draw: Draw) -> Case:
    known = ["BOOL", "UINT8", "INT8", "INT32", "INT64", "UINT64", "FP16", "BF16", "FP32", "FP64", "STRING"]
    wrong = draw((st.sampled_from(known) | small_json).filter(lambda value: value != "BYTES"))
    return as_case("datatype", document(datatype=wrong))


@kind
def data(draw: Draw) -> Case:
    items = st.lists(small_json.filter(lambda value: not isinstance(value, str)), min_size=1, max_size=3)
    too_many = st.integers(2, 40).map(lambda count: [TEXT] * count)
    wrong = draw(too_many | small_json.filter(lambda value: not isinstance(value, list)) | items | st.just([]))
    return as_case("data", document(data=wrong))


@kind
def field(draw: Draw) -> Case:
    """A field of the input is missing, or the input is none, twice there, or has company."""
    name = draw(st.sampled_from(["name", "datatype", "shape", "data"]))
    missing = document(**{name: ...})
    twice = {"inputs": document()["inputs"] * 2}
    company = {"inputs": document()["inputs"] + document(name=draw(st.text(max_size=8)) + "_")["inputs"]}
    stranger = document(name=draw(st.text(max_size=8)) + "_")
    return as_case("field", draw(st.sampled_from([missing, twice, company, stranger])))


@kind
def inputs(draw: Draw) -> Case:
    return as_case("inputs", draw(st.builds(lambda value: {"inputs": value}, small_json) | small_json))


@kind
def outputs(draw: Draw) -> Case:
    unknown = st.text(max_size=12).map(lambda name: [{"name": f"{name}_"}])
    wrong = st.sampled_from(["demo", None, {}, [1], [{}], [{"name": 3}], [{"name": ["demo"]}], [None], 7])
    return as_case("outputs", document() | {"outputs": draw(unknown | wrong)})


@kind
def parameters(draw: Draw) -> Case:
    """Parameters with a type or value that no parameter of this name has."""
    no_count = st.integers(max_value=-1) | st.text(max_size=5) | st.floats(0.1, 0.9) | st.integers(min_value=2**64)
    wrong = st.one_of(
        st.dictionaries(st.sampled_from(["priority", "timeout"]), no_count, min_size=1),
        st.builds(lambda value: {"sequence_start": value}, st.text(max_size=4) | st.integers()),
        st.builds(lambda value: {"binary_data_output": value}, st.text(max_size=4) | st.integers()),
        st.builds(lambda value: {"sequence_id": value}, st.integers(max_value=-1) | st.just([])),
        st.builds(lambda name: {f"triton_{name}": True}, st.text(max_size=6)),
        st.builds(lambda value: {"x": value}, st.none() | st.just([1]) | st.just({"a": 1})),
        st.sampled_from([[], "x", None, 5]),
    )
    return as_case("parameters", document() | {"parameters": draw(wrong)})


@kind
def shared_memory(draw: Draw) -> Case:
    region: dict[str, Any] = {"shared_memory_region": draw(st.text(max_size=12) | st.integers())}
    region["shared_memory_byte_size"] = draw(st.integers(-(2**64), 2**65) | st.text(max_size=4))
    region["shared_memory_offset"] = draw(st.integers(-(2**64), 2**65))
    answer = document() | {"outputs": [{"name": "demo", "parameters": region}]}
    beside, instead = document(parameters=region), document(parameters=region, data=...)
    return as_case("shared_memory", draw(st.sampled_from([answer, beside, instead])))


@kind
def binary_size(draw: Draw) -> Case:
    other = st.integers(-(2**65), 2**65) | st.integers(-8, 8).map(lambda more: len(ELEMENT) + more)
    wrong = draw((other | st.text(max_size=4) | st.floats(0.1, 9.9)).filter(lambda value: value != len(ELEMENT)))
    return Case("http binary_size", with_tail(ELEMENT, size=wrong))


@kind
def binary_element(draw: Draw) -> Case:
    """The length before the picture's bytes lies, or there are other elements than one."""
    prefix = draw(st.integers(0, 2**32 - 1).filter(lambda value: value != len(PICTURE)))
    lie = struct.pack("<I", prefix) + PICTURE
    count = draw(st.integers(2, 40))
    cut = ELEMENT[: draw(st.integers(0, len(ELEMENT) - 1))]
    return Case("http binary_element", with_tail(draw(st.sampled_from([lie, ELEMENT * count, cut]))))


@kind
def header_length(draw: Draw) -> Case:
    right = len(encode(document(data=..., parameters={"binary_data_size": len(ELEMENT)})))
    number = st.integers(-(2**65), 2**65) | st.integers(-9, 9).map(lambda more: right + more)
    wrong = draw((number | st.sampled_from(["", "x", "1e3", "0x10", "7 7"])).filter(lambda value: value != right))
    return Case("http header_length", with_tail(ELEMENT, header_length=wrong))


@kind
def path(draw: Draw) -> Case:
    version = st.integers(2, 2**70) | st.sampled_from(["x", "-1", "", "%31%00", "1/../2"])
    wrong = st.one_of(
        version.map(lambda value: f"/v2/models/image_score/versions/{value}/infer"),
        st.text("abc_%./0123", max_size=30).map(lambda name: f"/v2/models/{name}_/infer"),
        st.sampled_from(["/v2/models//infer", "/v2/models/../infer", "/v2/models/image_score%00/infer", "//", "/%"]),
        st.sampled_from(["clip_encoder", "demo_head"]).map(lambda name: f"/v2/models/{name}/infer"),
        st.integers(1000, 20_000).map(lambda count: f"/v2/models/{'a' * count}/infer"),
    )
    return Case("http path", message(encode(document()), path=draw(wrong)))


@kind
def method(draw: Draw) -> Case:
    wrong = draw(st.sampled_from(["GET", "PUT", "DELETE", "HEAD", "PATCH", "OPTIONS", "TRACE", "CONNECT", "get", "Ü"]))
    return Case("http method", message(encode(document()), method=wrong))


@kind
def text(draw: Draw) -> Case:
    """No JSON, no UTF-8, cut, or with something after its end."""
    right = encode(document())
    broken = st.one_of(
        st.binary(max_size=200),
        st.integers(0, len(right) - 1).map(lambda end: right[:end]),
        st.binary(min_size=1, max_size=5).map(lambda more: right + b"x" + more),
        st.binary(min_size=1, max_size=4).map(lambda name: right.replace(b"image", b"\xff" + name)),
        st.sampled_from(
            [right.replace(b'"image"', b'"\\ud800"'), right.replace(b"[1, 1]", b"[1" + b"0" * 400 + b",1]")]
        ),
    )
    return Case("http text", message(draw(broken)))


@kind
def nesting(draw: Draw) -> Case:
    depth = draw(st.integers(1, 20_000))  # 200,000 ends the server: known.py
    opened, closed = draw(st.sampled_from([(b"[", b"]"), (b'{"a":', b"}"), (b'{"inputs":[', b"]}")]))
    return Case("http nesting", message(opened * depth + b"1" + closed * depth))


@kind
def content_length(draw: Draw) -> Case:
    right = encode(document())
    number = st.integers(-(2**65), len(right) - 1) | st.integers(len(right) + 1, 2**65)
    wrong = draw(number | st.sampled_from(["x", "", "1e3", "0x10", "5, 7"]))
    return Case("http content_length", message(right, {"Content-Length": str(wrong)}), half_close=True)


@kind
def chunks(draw: Draw) -> Case:
    """A chunk whose length is none, or not that of what follows."""
    length = draw(st.sampled_from(["zz", "-5", "", "ffffffffffffffff", "fffffffff", "5;x", "0x5", "7"]))
    body = f"{length}\r\nabc\r\n0\r\n\r\n".encode()
    headers: Any = {"Transfer-Encoding": "chunked", "Content-Length": None}
    return Case("http chunks", message(body, headers), half_close=True)


@kind
def compression(draw: Draw) -> Case:
    packed = gzip.compress(encode(document()), mtime=0)
    cut = packed[: draw(st.integers(0, len(packed) - 30))]
    wrong = [
        (cut, "gzip"),
        (encode(document()), "gzip"),
        (encode(document()), "deflate"),
        (packed, "br"),
        (packed, "x"),
    ]
    body, name = draw(st.sampled_from(wrong))
    return Case("http compression", message(body, {"Content-Encoding": name}))


@kind
def odd(draw: Draw) -> Case:
    """Strange and harmless: the score must be the picture's own, if there is one."""
    count = st.integers(0, 2**64 - 1)
    parameters = st.dictionaries(st.sampled_from(["priority", "timeout", "sequence_id", "x"]), count, max_size=3)
    outputs = st.lists(st.sampled_from(["demo", "demo_decision", "demo_revision"]), max_size=5)
    changed = document() | {"parameters": draw(parameters), "id": draw(st.text(max_size=200))}
    changed["outputs"] = [{"name": name} for name in draw(outputs)]
    types = [
        "text/plain",
        "application/octet-stream",
        "multipart/form-data; boundary=x",
        "a/b; charset=utf-16",
        "x" * 999,
    ]
    headers = {"Content-Type": draw(st.sampled_from(types)), "X-Odd": draw(st.text("ab\x01\x7f", max_size=20))}
    mark = draw(st.sampled_from([b"", b"\xef\xbb\xbf", b" \n"]))
    return Case("http odd", message(mark + encode(changed), headers), tolerated=True)
