"""The proof that goes with a model repository: its contents, its comparison, and the servers that are refused."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tritonclient.grpc
from artefacts import write_head
from fakes import SERVE
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper
from PIL import Image
from unproved import UnprovedServer

from build.encoder import make_encoder
from build.head import build_head
from build.proof import CHOICE, COUNT, LARGE_PHOTOGRAPH, MOST_BYTES, choose_pictures, make_proof
from build.repository import check_installed, install, read_artefacts
from build.repository_check import RepositoryError, check
from clipsieve import AccessDenied, Client, InferenceFailed
from clipsieve.transport import Request, array_from_wire
from common import preflight, proof
from common.cpu import Cpu, find_cpu, int8_problem
from common.manifest import EncoderManifest, read_encoder, sha256_of, write_manifest
from common.paths import ROOT, encoder_folder
from common.photos import Picture, verification_pictures
from common.pixels import served_pixels, served_transform
from common.proof import (
    Answers,
    HeadAnswer,
    Proof,
    ProofHead,
    ProofPicture,
    failure_message,
    misses,
    proof_from_json,
    proof_to_json,
    success_message,
)
from common.proof_file import ProofFileError, proof_path, proof_problems, read_proof
from recipes.schema import Recipe, parse_recipe
from recipes.serving_section import Serving
from serving.container import health
from serving.embedded import EmbeddedServer, ServerSettings
from serving.proof import ProofMissed, ask
from serving.triton_wheel import ServingError


@pytest.fixture
def copy(repository: Path, tmp_path: Path) -> Path:
    """The installed demo repository, to be spoiled."""
    return Path(shutil.copytree(repository, tmp_path / "models"))


def start(repository: Path, tmp_path: Path) -> EmbeddedServer:
    return EmbeddedServer(repository, ServerSettings.on_free_ports(tmp_path / "log", exit_timeout_s=4))


def with_parts(demo: Recipe, **sections: dict[str, Any]) -> Recipe:
    """The demo recipe with other keys in some sections."""
    data = demo.model_dump(mode="json", exclude_defaults=True)
    return parse_recipe(data | {name: data.get(name, {}) | changes for name, changes in sections.items()})


def made(recipe: Recipe) -> Proof:
    artefacts = read_artefacts(recipe)
    return make_proof(recipe, artefacts.encoder, [*zip(artefacts.head_folders, artefacts.heads, strict=True)], [])


def damage_encoder(repository: Path, factor: float = 1.5) -> None:
    """Scale one weight and make the manifest fit, so that nothing but the proof can notice."""
    version = repository / "clip_encoder" / "1"
    model = onnx.load(version / "model.onnx")
    weight = max(model.graph.initializer, key=lambda tensor: int(np.prod(tensor.dims)))
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(factor), weight.name))
    onnx.save(model, version / "model.onnx")
    sha256 = sha256_of(version / "model.onnx")
    manifest = read_encoder(version).model_copy(update={"onnx_sha256": sha256})
    write_manifest(manifest, version / "encoder.json")
    edit_proof(repository, lambda document: document.update(onnx_sha256=sha256))


def edit_proof(repository: Path, change: Callable[[dict], object]) -> None:
    path = proof_path(repository)
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


# What is installed


def test_the_proof_is_the_verifications(repository, demo, encoder):
    stored = read_proof(repository)
    names = [picture.name for picture in verification_pictures()]
    with np.load(encoder_folder(demo) / "verification.npz") as arrays:
        for picture in stored.pictures:
            row = names.index(picture.name)
            np.testing.assert_array_equal(np.array(picture.reference, np.float32), arrays["torch"][row])
            np.testing.assert_array_equal(np.array(picture.verified, np.float32), arrays["embeddings"][row])
    assert [picture.name for picture in stored.pictures] == list(CHOICE[:COUNT])
    assert stored.encoder == encoder.fingerprint().model_dump()
    assert (stored.precision, stored.minimum_cosine, stored.maximum_score_difference) == ("fp32", 0.99999, 0.05)
    assert str(find_cpu()) in stored.verified_on
    assert "onnxruntime" in stored.verified_on


def test_the_proof_is_strict_json_and_reads_as_it_was_written(repository):
    text = proof_path(repository).read_text()
    assert json.loads(text, parse_constant=pytest.fail)["format"] == proof.FORMAT
    assert proof_to_json(proof_from_json(text)) == text


def test_requests_stay_within_the_largest_batch(demo, repository):
    small = made(with_parts(demo, serving={"max_batch_size": 3}))
    assert [len(batch) for batch in small.batches()] == [3, 1]
    assert [len(batch) for batch in read_proof(repository).batches()] == [COUNT]


def test_a_shadow_head_has_no_scores_of_pictures(demo, repository, tmp_path):
    data = demo.model_dump(mode="json") | {"serving": {"watch": True}}
    data["heads"] = [
        {"name": name, "class_names": ["no", "yes"], "source": str(tmp_path / name)} for name in ("live", "next")
    ]
    data["heads"][0]["shadow"] = "next"
    for head in data["heads"]:
        write_head(Path(head["source"]), read_encoder(encoder_folder(demo)), ["no", "yes"], name=head["name"])
        build_head(Path(head["source"]), 18)
    stored = made(parse_recipe(data))
    assert (stored.head_names, stored.image_heads) == (["live", "next"], ["live"])


@pytest.mark.parametrize("formats", [["JPEG"], ["WEBP"], ["BMP"], ["GIF"], ["PNG"], ["JPEG", "WEBP"]])
def test_pictures_are_in_a_format_that_is_served(demo, encoder, formats):
    serving = demo.serving.model_copy(update={"formats": formats})
    chosen = choose_pictures(with_parts(demo, serving={"formats": formats}), encoder, verification_pictures())
    transform = served_transform(encoder.preprocessing, serving)
    exact = served_transform(encoder.preprocessing, Serving())
    originals = {picture.name: picture.data for picture in verification_pictures()}
    for name, file in chosen.items():
        with Image.open(io.BytesIO(file)) as image:
            assert image.format in formats
        assert len(file) <= MOST_BYTES
        np.testing.assert_array_equal(transform(file), exact(originals[name]))
    assert len(chosen) >= 3


def test_pictures_are_within_the_limits(demo, encoder):
    recipe = with_parts(demo, serving={"max_pixels": 70_000, "max_bytes": 1200})
    chosen = choose_pictures(recipe, encoder, verification_pictures())
    assert chosen
    assert all(len(file) <= 1200 for file in chosen.values())


def test_a_recipe_that_no_picture_fits_says_what_to_allow(demo, encoder):
    recipe = with_parts(demo, serving={"max_bytes": 10})
    with pytest.raises(RepositoryError, match=r"max_bytes 10 .* could not be proved; allow PNG or JPEG"):
        choose_pictures(recipe, encoder, verification_pictures())


def test_scaled_decoding_is_proved_by_a_picture_that_is_scaled(demo, encoder):
    views = [view.model_copy(update={"decode": "scaled"}) for view in encoder.preprocessing]
    recipe = with_parts(demo, encoder={"decode": "scaled"})
    chosen = choose_pictures(recipe, encoder.model_copy(update={"preprocessing": views}), verification_pictures())
    photograph = chosen[LARGE_PHOTOGRAPH]
    scaled, exact = (served_transform(each, Serving())(photograph) for each in (views, encoder.preprocessing))
    assert (scaled != exact).any()


def test_jpegs_that_dali_decodes_are_verified_as_it_decodes_them(demo, repository, tmp_path, monkeypatch):
    """DALI's pixels are near; a server is held to the looser of the two limits."""
    recipe = with_parts(demo, serving={"preprocess": "dali"})
    artefacts = read_artefacts(recipe)

    def near(folder: Path, device: str, encoder: EncoderManifest, serving: Serving, jpegs: list[Picture]) -> np.ndarray:
        assert [picture.name for picture in jpegs] == ["rocket.jpg"]
        return np.bitwise_xor(served_pixels(encoder.preprocessing, serving, jpegs), 1)

    monkeypatch.setattr("build.proof.dali_pixels", near)
    heads = [*zip(artefacts.head_folders, artefacts.heads, strict=True)]
    exact, with_dali = made(demo), make_proof(recipe, artefacts.encoder, heads, [], tmp_path)
    assert with_dali.minimum_cosine == recipe.build.minimum_cosine.dali
    changed = [one.verified != other.verified for one, other in zip(exact.pictures, with_dali.pictures, strict=True)]
    assert changed == [True, False, False, False]
    assert with_dali.minimum_cosine < with_dali.pictures[0].cosine < exact.pictures[0].cosine


def test_a_verification_of_other_pictures_is_refused(demo, repository, monkeypatch):
    monkeypatch.setattr("build.proof.verification_pictures", lambda: verification_pictures()[:-1])
    with pytest.raises(RepositoryError, match=r"25 embeddings, the verification now has 24 pictures"):
        made(demo)


def test_a_verified_cosine_below_the_limit_installs_nothing(demo, repository, tmp_path, monkeypatch):
    monkeypatch.setattr("build.proof.saved_embeddings", wrong_embeddings)
    with pytest.raises(RepositoryError, match=r"rocket.jpg: the verified cosine .* is below the limit 0.99999"):
        install(demo, tmp_path / "models")
    assert not (tmp_path / "models").exists()


def wrong_embeddings(folder: Path, name: str) -> np.ndarray:
    with np.load(folder / "verification.npz") as arrays:
        return arrays[name] if name == "torch" else arrays[name] + np.float32(0.1)


# What is compared


numbers = st.floats(-4, 4, width=32)


@st.composite
def proofs(draw: st.DrawFn) -> Proof:
    dim, count, labels = draw(st.integers(1, 5)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    row = st.lists(numbers, min_size=dim, max_size=dim)
    scores = st.lists(st.lists(numbers, min_size=labels, max_size=labels), min_size=count, max_size=count)
    return Proof(
        recipe="demo",
        encoder={"id": "tiny"},
        onnx_sha256="0" * 64,
        precision="fp32",
        minimum_cosine=draw(st.floats(0.5, 1)),
        maximum_score_difference=draw(st.floats(0.001, 1)),
        batch_size=draw(st.integers(1, 5)),
        verified_on="a CPU",
        pictures=tuple(ProofPicture(f"{index}.png", b"file", draw(row), draw(row)) for index in range(count)),
        heads=(ProofHead("demo", 7, draw(scores), draw(scores)),),
    )


@st.composite
def cases(draw: st.DrawFn) -> tuple[Proof, Answers]:
    drawn = draw(proofs())
    count, (head,) = len(drawn.pictures), drawn.heads
    dim = len(drawn.pictures[0].reference)
    other = st.lists(numbers, min_size=dim, max_size=dim)
    embeddings = [draw(st.one_of(st.just(picture.reference), other)) for picture in drawn.pictures]

    def near(rows) -> HeadAnswer:
        offset = draw(st.sampled_from([0.0, 1e-6, 1e-3, 0.04, 0.5]))
        return HeadAnswer(
            [draw(st.sampled_from([7, 7, 7, 8]))] * count, [[value + offset for value in row] for row in rows]
        )

    assert head.image_scores is not None
    return drawn, Answers(embeddings, {"demo": near(head.scores)}, {"demo": near(head.image_scores)})


@given(cases())
def test_the_comparison_is_that_of_numpy(case):
    drawn, answers = case
    (head,) = drawn.heads
    assert head.image_scores is not None
    reference = np.array([picture.reference for picture in drawn.pictures])
    served = np.array(answers.embeddings)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines = (reference * served).sum(1) / np.sqrt((reference**2).sum(1) * (served**2).sum(1))
    assert np.allclose(cosines, proof.cosines(drawn, answers.embeddings), atol=1e-9, equal_nan=True)
    if np.abs(cosines - drawn.minimum_cosine).min(initial=1) < 1e-9:
        return  # on the edge both are right
    expected = int(np.sum(~(cosines >= drawn.minimum_cosine)))
    relative = drawn.maximum_score_difference * np.maximum(1, np.abs(head.image_scores))
    for rows, answer, limits in (
        (head.scores, answers.heads["demo"], 1e-4 * max(1, np.abs(head.scores).max())),
        (head.image_scores, answers.images["demo"], relative),
    ):
        if answer.revisions[0] != 7:
            expected += 1
        else:
            expected += int(np.any(np.abs(np.array(answer.scores) - np.array(rows)) > limits, axis=1).sum())
    assert len(misses(drawn, answers)) == expected


@given(proofs())
def test_a_proof_reads_as_it_was_written(drawn):
    again = proof_from_json(proof_to_json(drawn))
    assert proof_to_json(again) == proof_to_json(drawn)
    assert [list(picture.reference) for picture in again.pictures] == [picture.reference for picture in drawn.pictures]


def simple(**changes: Any) -> Proof:
    pictures = (
        ProofPicture("a.png", b"a", (1.0, 0.0), (1.0, 0.001)),
        ProofPicture("b.png", b"bb", (0.0, 1.0), (0.0, 1.0)),
    )
    heads = (ProofHead("demo", 7, ((0.5,), (0.25,)), ((0.5,), (0.25,))),)
    fields = {
        "recipe": "demo", "encoder": {}, "onnx_sha256": "", "precision": "int8", "minimum_cosine": 0.9,
        "maximum_score_difference": 0.05, "batch_size": 2, "verified_on": "AMD EPYC with onnxruntime 1.31.0",
        "pictures": pictures, "heads": heads,
    }  # fmt: skip
    return Proof(**fields | changes)


def right(**changes: Any) -> Answers:
    answer = HeadAnswer([7, 7], [[0.5], [0.25]])
    fields = {"embeddings": [[2.0, 0.0], [0.0, 2.0]], "heads": {"demo": answer}, "images": {"demo": answer}}
    return Answers(**fields | changes)


def of_head(*scores: float, revisions: tuple[int, ...] = (7, 7)) -> dict[str, Any]:
    return {"heads": {"demo": HeadAnswer(revisions, [[score] for score in scores])}}


def of_images(*scores: float) -> dict[str, Any]:
    return {"images": {"demo": HeadAnswer([7, 7], [[score] for score in scores])}}


NAN = math.nan
MISSES: list[tuple[dict[str, Any], str]] = [
    (
        {"embeddings": [[1.0, 1.0], [0.0, 1.0]]},
        "a.png: cosine 0.7071068 to the reference, 0.9999995 at the build; at least 0.9 is wanted",
    ),
    ({"embeddings": [[1.0, 0.0], [0.0, 0.0]]}, "b.png: cosine nan to the reference"),
    ({"embeddings": [[NAN, 0.0], [0.0, 1.0]]}, "a.png: cosine nan to the reference"),
    ({"embeddings": [[1.0, 0.0]]}, "embeddings have [2] dims, the pictures' references [2, 2]"),
    (of_head(0.5, 0.2504), "demo_head: b.png: score 0.2504, 0.25 at the build; ±0.0001 is allowed"),
    (of_head(0.5, NAN), "demo_head: b.png: score nan"),
    (
        of_head(0.5, 0.25, revisions=(8, 8)),
        "demo_head: revision 0000000000000008 of demo answers, known are 0000000000000007",
    ),
    (of_head(0.5, 0.25, revisions=(7, 8)), "demo_head: revision 0000000000000007, 0000000000000008 of demo answers"),
    (of_head(0.5, revisions=(7,)), "demo_head: [1] scores, expected [1, 1]"),
    ({"heads": {}}, "demo_head: revision none of demo answers"),
    (of_images(0.56, 0.25), "image_score: demo: a.png: score 0.56, 0.5 at the build; ±0.05 is allowed"),
    (of_images(NAN, 0.25), "image_score: demo: a.png: score nan"),
]


def test_right_answers_miss_nothing():
    assert misses(simple(), right()) == []
    assert success_message(simple(), right().embeddings) == "2 proof pictures: cosine >= 1 (limit 0.9)"


@pytest.mark.parametrize(("changes", "expected"), MISSES)
def test_a_wrong_answer_is_named(changes, expected):
    (line,) = misses(simple(), right(**changes))
    assert line.startswith(expected)


def test_after_a_rollout_either_revision_may_answer_with_its_own_scores():
    both = simple(heads=(*simple().heads, ProofHead("demo", 8, ((0.1,), (0.2,)), ((0.1,), (0.2,)))))
    new = HeadAnswer([8, 8], [[0.1], [0.2]])
    assert misses(both, right()) == misses(both, right(heads={"demo": new}, images={"demo": new})) == []
    mixed = HeadAnswer([8, 8], [[0.5], [0.25]])
    assert len(misses(both, right(heads={"demo": mixed}))) == 2


def test_the_cosine_of_a_success_is_never_rounded_up():
    nearly = simple(minimum_cosine=0.9999)
    assert "cosine >= 0.9999999 (limit 0.9999)" in success_message(nearly, [[1.0, 0.0004], [0.0, 1.0]])


def test_a_failure_names_both_machines_and_what_to_do():
    text = failure_message(simple(), ["a.png: cosine 0.7"], "Intel Xeon with onnxruntime 1.30.0")
    for part in ("recipe demo, int8", "a.png: cosine 0.7", "served on Intel Xeon with onnxruntime 1.30.0"):
        assert part in text
    assert "verified on AMD EPYC with onnxruntime 1.31.0" in text
    assert "make engines" in text


SPOILED: list[tuple[Callable[[dict], object], str]] = [
    (lambda document: document.update(format=2), "format 2, this version reads 1"),
    (lambda document: document.pop("pictures"), "KeyError: 'pictures'"),
    (lambda document: document.update(pictures=[]), "no pictures"),
    (lambda document: document.update(minimum_cosine=math.nan), "NaN is no number"),
    (lambda document: document.update(minimum_cosine=0.0), "out of range"),
    (lambda document: document.update(minimum_cosine=10**400), "OverflowError"),
    (lambda document: document.update(heads=3), "TypeError"),
    (lambda document: document["heads"][0].update(scores=[[math.inf]]), "Infinity is no number"),
    (lambda document: document["heads"][0].update(scores=[[0.5]]), "another number of pictures"),
    (lambda document: document["pictures"][0].update(reference="AAAAAA"), "Error"),
    (lambda document: document["pictures"][0].update(reference="AADAfw=="), "several lengths"),
    (lambda document: document["pictures"][0].update(file="not base64"), "Error"),
]


@pytest.mark.parametrize(("change", "expected"), SPOILED)
def test_a_spoiled_proof_is_refused_before_the_server_starts(copy, tmp_path, change, expected):
    edit_proof(copy, change)
    with pytest.raises(ServingError, match=rf"proof.json: damaged \(.*{expected}.*make engines"), start(copy, tmp_path):
        pass
    assert not (tmp_path / "log").exists()


def test_nan_in_an_embedding_is_no_proof(copy):
    edit_proof(copy, lambda document: document["pictures"][0].update(verified=nan_row(128)))
    with pytest.raises(ProofFileError, match="a number is not finite"):
        read_proof(copy)


def nan_row(dim: int) -> str:
    return proof._packed([math.nan] * dim)


def test_a_truncated_proof_is_refused(copy):
    path = proof_path(copy)
    path.write_bytes(path.read_bytes()[:-100])
    assert "damaged" in proof_problems(copy)[0]


def test_no_number_that_is_not_finite_is_ever_written():
    with pytest.raises(ValueError, match="JSON compliant"):
        proof_to_json(simple(minimum_cosine=math.nan))


# A proof of other models


def test_a_repository_without_a_proof_is_refused_before_the_server_starts(copy, tmp_path):
    proof_path(copy).unlink()
    with pytest.raises(ServingError, match=r"proof.json: not found; .*make engines"), start(copy, tmp_path):
        pass
    assert not (tmp_path / "log").exists()
    assert any("proof.json: not found" in problem for problem in check(copy))
    shutil.rmtree(copy / "proof")
    assert any("servers cannot be proved" in problem for problem in check(copy))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda document: document.update(onnx_sha256="f" * 64), "its onnx_sha256 is 'ffff"),
        (lambda document: document.update(precision="int8"), "its precision is 'int8', encoder.json says 'fp32'"),
        (lambda document: document["encoder"].update(weights_sha256="e" * 64), "its weights_sha256 is 'eeee"),
        (
            lambda document: document["heads"][0].update(revision="00ff"),
            "it knows revision 00000000000000ff, ",
        ),
        (lambda document: document["heads"][0].update(name="other"), "of another head demo: it knows none"),
    ],
)
def test_a_proof_of_other_models_is_refused(copy, tmp_path, change, expected):
    edit_proof(copy, change)
    assert any(expected in problem and "make engines" in problem for problem in proof_problems(copy)), proof_problems(
        copy
    )
    assert any(expected in problem for problem in check(copy))
    with pytest.raises(ServingError, match=r"proof\.json"), start(copy, tmp_path):
        pass
    assert not (tmp_path / "log").exists()


def test_check_holds_the_proof_against_the_version_that_is_served(copy, encoder, demo):
    """Both versions are installed, and the proof knows the one that is not served."""
    config = copy / "demo_head" / "config.pbtxt"
    shutil.copytree(copy / "demo_head" / "1", copy / "demo_head" / "2")
    write_head(copy / "demo_head" / "2", encoder, demo.heads[0].class_names, seed=5)
    config.write_text(config.read_text() + "version_policy { specific { versions: [ 2 ] } }\n")
    assert proof_problems(copy) == []
    assert any("which is not in it" in problem for problem in check(copy))


def test_check_finds_requests_that_are_too_large(copy):
    edit_proof(copy, lambda document: document.update(batch_size=33))
    assert any("33 pictures in a request, max_batch_size is 32" in problem for problem in check(copy))


def test_an_installed_repository_passes(repository, patient_demo):
    assert check_installed(patient_demo, repository) == []
    assert preflight.problems(repository) == []


# The CPU


OLD = Cpu("Intel(R) Core(TM)2 Duo", "x86_64", frozenset({"sse4_1", "ssse3"}))


@pytest.mark.parametrize(
    ("cpu", "refused"),
    [
        (OLD, True),
        (dataclasses.replace(OLD, flags=frozenset({"avx2"})), False),
        (dataclasses.replace(OLD, flags=frozenset()), False),  # the kernel does not say
        (Cpu("Neoverse-N1", "aarch64", frozenset({"asimddp"})), False),
    ],
)
def test_an_int8_encoder_wants_avx2(cpu, refused):
    problem = int8_problem(cpu)
    assert (problem is not None) == refused
    if problem:
        assert "Core(TM)2" in problem
        assert "build.precision fp32" in problem


def test_an_int8_encoder_is_not_started_without_avx2(copy, tmp_path, monkeypatch):
    version = copy / "clip_encoder" / "1"
    write_manifest(read_encoder(version).model_copy(update={"precision": "int8"}), version / "encoder.json")
    edit_proof(copy, lambda document: document.update(precision="int8"))
    monkeypatch.setattr("common.cpu.find_cpu", lambda: OLD)
    with pytest.raises(ServingError, match=r"the encoder is int8, .*has no AVX2.*fp32"), start(copy, tmp_path):
        pass


def test_cpuinfo_is_read_as_linux_writes_it(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: AMD EPYC 7B13\nflags\t\t: fpu avx2 sse\n\nprocessor\t: 1\n")
    cpu = find_cpu(cpuinfo)
    assert (cpu.name, cpu.instructions, str(cpu)) == ("AMD EPYC 7B13", ["avx2"], "AMD EPYC 7B13 (avx2)")
    assert find_cpu(tmp_path / "absent").flags == frozenset()


# The embedded server


@pytest.fixture(scope="module")
def wrong_server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """A server of a damaged encoder."""
    folder = tmp_path_factory.mktemp("wrong")
    models = Path(shutil.copytree(repository, folder / "models"))
    damage_encoder(models)
    with UnprovedServer(models, ServerSettings.on_free_ports(folder / "log")) as server:
        yield server


def test_a_healthy_server_gives_every_answer(server, repository):
    stored = read_proof(repository)
    with tritonclient.grpc.InferenceServerClient(server.grpc_url) as client:
        answers = ask(client, stored)
    assert misses(stored, answers) == []
    assert server.picture == stored.smallest_picture


def test_a_damaged_encoder_never_becomes_ready(copy, tmp_path):
    damage_encoder(copy)
    server = start(copy, tmp_path)
    with pytest.raises(ProofMissed) as caught, server:
        pass
    message = str(caught.value)
    for part in ("rocket.jpg: cosine 0.", "at the build; at least 0.99999 is wanted", "served on ", "make engines"):
        assert part in message
    assert message.count(str(find_cpu())) == 2  # here, and at the build
    assert "is damaged" not in message  # its sum is that of its manifest
    assert server.poll() is not None


def test_a_file_that_is_not_its_manifests_is_named_as_damaged(copy, tmp_path):
    version = copy / "clip_encoder" / "1"
    before = read_encoder(version)
    damage_encoder(copy)
    write_manifest(before, version / "encoder.json")
    edit_proof(copy, lambda document: document.update(onnx_sha256=before.onnx_sha256))
    with pytest.raises(ProofMissed, match=r"model.onnx is damaged: its sha256 is"), start(copy, tmp_path):
        pass


def test_another_heads_file_never_becomes_ready(copy, encoder, demo, tmp_path):
    """The damaged file's manifest and config are those of the installed head."""
    other = write_head(tmp_path / "other", encoder, demo.heads[0].class_names, seed=9)
    build_head(tmp_path / "other", demo.build.opset)
    shutil.copy(tmp_path / "other" / "model.onnx", copy / "demo_head" / "1")
    expected = rf"demo_head: revision {other.revision:016x} of demo answers, known are"
    with pytest.raises(ProofMissed, match=expected), start(copy, tmp_path):
        pass


def test_a_server_without_png_is_ready(demo, repository, tmp_path):
    install(with_parts(demo, serving={"formats": ["JPEG"]}), tmp_path / "models")
    with start(tmp_path / "models", tmp_path) as server:
        assert server.picture.startswith(b"\xff\xd8")


def test_an_encoder_is_built_for_a_recipe_without_png(demo, repository):
    """The verification's pictures do not depend on what is served."""
    manifests = make_encoder(with_parts(demo, serving={"formats": ["JPEG"], "max_pixels": 100_000}))
    assert [manifest.id for manifest in manifests] == [read_encoder(encoder_folder(demo)).id]


# The client


def addresses(server: EmbeddedServer) -> dict[str, str]:
    return {"grpc": server.grpc_url, "http": f"http://{server.http_url}"}


def test_the_clients_copy_is_the_same_file():
    ours, copied = ROOT / "common" / "proof.py", ROOT / "clients" / "clipsieve" / "proof_format.py"
    assert copied.read_text() == ours.read_text(), f"run: cp {ours} {copied}"


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_health_proves_a_server(server, protocol):
    with Client(addresses(server)[protocol]) as client:
        health = client.health(timeout_s=30)
    assert health.status == "ok", health
    assert re.fullmatch(
        r"scored an image with demo in \d+ ms; 4 proof pictures: cosine >= [01][.\d]* \(limit 0\.99999\)",
        health.message,
    )


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_health_finds_a_damaged_encoder(wrong_server, protocol):
    with Client(addresses(wrong_server)[protocol]) as client:
        health = client.health(timeout_s=30)
        assert client.health(deep=False).ok
    assert health.status == "failing"
    for part in ("rocket.jpg: cosine 0.", "at least 0.99999 is wanted", f"verified on {find_cpu()}", "make engines"):
        assert part in health.message


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_server_without_a_proof_is_healthy_and_not_proved(model, protocol):
    with SERVE[protocol](model) as url, Client(url, protocol=protocol) as client:
        health = client.health()
    assert health.status == "ok"
    assert "not proved: " in health.message
    assert "make engines" in health.message


def test_a_proof_that_a_proxy_hides_is_none(model, url, monkeypatch):
    async def refuse(transport: object, request: Request, timeout_s: float) -> dict[str, np.ndarray]:
        if request.model == "proof":
            raise AccessDenied("403")
        return {}

    monkeypatch.setattr("clipsieve.grpc_transport.GrpcTransport.infer", refuse)
    with Client(url) as client:
        assert "not proved" in client.health().message


@pytest.mark.parametrize("text", [b"{", b'{"format": 99}', "no bytes"])
def test_a_proof_that_cannot_be_read_is_a_failure(model, url, monkeypatch, text):
    async def answer(transport: object, request: Request, timeout_s: float) -> dict[str, np.ndarray]:
        return {"proof": np.array([text], dtype=object)}

    monkeypatch.setattr("clipsieve.grpc_transport.GrpcTransport.infer", answer)
    with Client(url) as client:
        health = client.health()
    assert health.status == "failing"
    assert "proof cannot be read" in health.message


@given(st.lists(st.binary(max_size=20), max_size=4))
def test_texts_on_the_wire_are_read(elements):
    data = b"".join(len(each).to_bytes(4, "little") + each for each in elements)
    assert array_from_wire("BYTES", [len(elements)], data).tolist() == elements


@pytest.mark.parametrize("data", [b"\x05\0\0\0abc", b"\x01\0", b""])
def test_a_text_that_is_cut_short_is_no_answer(data):
    with pytest.raises(InferenceFailed, match="BAD_RESPONSE"):
        array_from_wire("BYTES", [1], data)


# The container's health check


def test_the_containers_check_compares_as_the_build_does():
    assert health.misses is misses
    assert health.proof_from_json is proof_from_json


def test_the_containers_check_never_passes_on_a_damaged_encoder(wrong_server, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(health, "MARKERS", tmp_path)
    for _ in range(2):
        assert health.main([f"http://{wrong_server.http_url}"]) == 1
        shown = capsys.readouterr().err
        for part in ("unhealthy: ", "rocket.jpg: cosine 0.", "at least 0.99999 is wanted", "make engines"):
            assert part in shown
        assert shown.count(str(find_cpu())) == 2
    assert list(tmp_path.iterdir()) == []
