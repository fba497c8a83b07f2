"""Malformed gRPC requests for `image_score`, as hypothesis strategies: one per kind, each wrong in one place."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

from trials.malformed.http_requests import ELEMENT, PICTURE, WRAP, Draw
from trials.malformed.wire import Case, service_pb2

KINDS: dict[str, st.SearchStrategy[Case]] = {}
INT64 = st.integers(-(2**63), 2**63 - 1)


def kind(build: Callable[[Draw], Case]) -> Callable[[Draw], Case]:
    """Enter a function that draws a request into KINDS under its name."""
    KINDS[build.__name__] = st.composite(build)()
    return build


def message(shape: Sequence[int] = (1, 1), raw: Sequence[bytes] = (ELEMENT,), **fields: Any) -> Any:
    """The right ModelInferRequest, with another shape, raw contents, or field of its input or of itself."""
    tensor = {"name": fields.pop("name", "image"), "datatype": fields.pop("datatype", "BYTES")}
    request = service_pb2.ModelInferRequest(**({"model_name": "image_score"} | fields), raw_input_contents=raw)
    request.inputs.add(**tensor, shape=shape)
    return request


def as_case(name: str, request: Any, **options: Any) -> Case:
    return Case(f"grpc {name}", request.SerializeToString(), **options)


def is_wrong_shape(shape: list[int]) -> bool:
    return not (len(shape) == 2 and shape[1] == 1 and shape[0] % WRAP in (0, 1))


@kind
def shape(draw: Draw) -> Case:
    dim = INT64 | st.sampled_from([-1, 0, 1, 2, 33, 2**31, WRAP, -WRAP, WRAP + 2, 2**63 - 1, -(2**63)])
    wrong = draw((dim.map(lambda batch: [batch, 1]) | st.lists(dim, max_size=4)).filter(is_wrong_shape))
    return as_case("shape", message(wrong))


@kind
def wrapped_shape(draw: Draw) -> Case:
    """A batch size that is 0 or 1 in 32 bits: the answer must be the score of the one picture that came."""
    times = draw(st.integers(-(2**31), 2**31 - 1))
    return as_case("wrapped_shape", message([WRAP * times + draw(st.booleans()), 1]), tolerated=True)


@kind
def datatype(draw: Draw) -> Case:
    known = st.sampled_from(["BOOL", "UINT8", "INT64", "FP16", "FP32", "FP64", "bytes"])
    return as_case(
        "datatype", message(datatype=draw((known | st.text(max_size=8)).filter(lambda name: name != "BYTES")))
    )


@kind
def raw_contents(draw: Draw) -> Case:
    """Shorter or longer than the shape says, none, or with a length that lies."""
    prefix = draw(st.integers(0, 2**32 - 1).filter(lambda value: value != len(PICTURE)))
    lie = [struct.pack("<I", prefix) + PICTURE]
    cut = [ELEMENT[: draw(st.integers(0, len(ELEMENT) - 1))]]
    several = [ELEMENT * draw(st.integers(2, 40))]
    longer = [ELEMENT + draw(st.binary(min_size=1, max_size=20))]
    return as_case("raw_contents", message(raw=draw(st.sampled_from([lie, cut, several, longer, []]))))


@kind
def typed_contents(draw: Draw) -> Case:
    name = draw(st.sampled_from(["fp32_contents", "int64_contents", "bool_contents", "uint_contents"]))
    request = message(raw=[])
    getattr(request.inputs[0].contents, name).extend([1] * draw(st.integers(1, 3)))
    both, many = message(), message(raw=[])
    both.inputs[0].contents.bytes_contents.append(PICTURE)
    many.inputs[0].contents.bytes_contents.extend([PICTURE] * draw(st.integers(2, 40)))
    return as_case("typed_contents", draw(st.sampled_from([request, both, many])))


@kind
def model(draw: Draw) -> Case:
    name = draw(st.text(max_size=20)) + "_"
    version = draw(st.sampled_from(["x", "-1", "0", "9", "9" * 30]))
    other = draw(st.sampled_from(["clip_encoder", "demo_head", ""]))
    wrong = [message(model_name=name), message(model_version=version), message(model_name=other)]
    return as_case("model", draw(st.sampled_from(wrong)))


@kind
def tensors(draw: Draw) -> Case:
    """An input that is unknown, missing, twice there or one too many, or an output that is unknown."""
    name = draw(st.text(max_size=8)) + "_"
    missing, twice, company, unknown = (
        message(raw=[]),
        message(raw=[ELEMENT] * 2),
        message(raw=[ELEMENT] * 2),
        message(),
    )
    del missing.inputs[:]
    twice.inputs.add(name="image", datatype="BYTES", shape=[1, 1])
    company.inputs.add(name=name, datatype="BYTES", shape=[1, 1])
    unknown.outputs.add(name=name)
    return as_case("tensors", draw(st.sampled_from([message(name=name), missing, twice, company, unknown])))


@kind
def parameters(draw: Draw) -> Case:
    request = message()
    name, value = draw(
        st.sampled_from(
            [
                ("priority", {"int64_param": -1}),
                ("priority", {"string_param": "1"}),
                ("timeout", {"string_param": "x"}),
                ("sequence_start", {"string_param": "x"}),
                ("triton_x", {"bool_param": True}),
                ("headers", {}),
            ]
        )
    )
    request.parameters[name].MergeFrom(service_pb2.InferParameter(**value))
    return as_case("parameters", request)


@kind
def shared_memory(draw: Draw) -> Case:
    region, size = draw(st.text(max_size=12)), draw(INT64)
    input_message, output_message = message(raw=[]), message()
    for parameters in (input_message.inputs[0].parameters, output_message.outputs.add(name="demo").parameters):
        parameters["shared_memory_region"].string_param = region
        parameters["shared_memory_byte_size"].int64_param = size
        parameters["shared_memory_offset"].int64_param = draw(INT64)
    return as_case("shared_memory", draw(st.sampled_from([input_message, output_message])))


@kind
def message_bytes(draw: Draw) -> Case:
    """A message cut anywhere, or no message at all."""
    right = message().SerializeToString()
    cut = right[: draw(st.integers(0, len(right) - 1))]
    return Case("grpc message_bytes", draw(st.just(cut) | st.binary(max_size=300) | st.just(right + b"\xff\xff")))


@kind
def odd(draw: Draw) -> Case:
    """Strange and harmless: the score must be the picture's own, if there is one."""
    request = message(id=draw(st.text(max_size=300)), model_version=draw(st.sampled_from(["", "1", "1e3", " 1x"])))
    for name in draw(st.lists(st.sampled_from(["demo", "demo_decision", "demo_revision"]), max_size=5)):
        request.outputs.add(name=name)
    for name in draw(st.sets(st.sampled_from(["priority", "timeout", "sequence_id", "x"]))):
        request.parameters[name].int64_param = draw(st.integers(0, 2**63 - 1))
    return as_case("odd", request, tolerated=True)
