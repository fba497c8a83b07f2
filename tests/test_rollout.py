"""Replacing a head on the real server, under load: nothing fails, and every answer names who gave it."""

from __future__ import annotations

import json
import shutil
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import tritonclient.grpc as grpc
from heads import BuiltHead, built_head
from pictures import jpeg
from tritonclient.utils import InferenceServerException
from waiting import PATIENCE_S, until

from build.head import build_head
from build.repository import install
from build.repository_check import check
from clipsieve import Client
from common.manifest import HeadManifest, ManifestError, Threshold, read_head, write_manifest
from common.proof import HeadAnswer, Proof, misses
from common.proof_file import read_proof, set_head
from common.served_versions import installed_versions
from recipes.errors import run_step
from recipes.schema import parse_recipe
from serving import rollout
from serving.config_text import edited
from serving.embedded import EmbeddedServer, ServerSettings
from serving.head_probe import ProbeSet
from serving.head_versions import Served, read_served
from serving.model_control import ControlledServer
from serving.proof import ask
from serving.rollout import roll_back, roll_out
from serving.triton_wheel import ServingError
from serving.tritonserver_options import ADMIN_HEADER, control_options, grpc_admin_headers

KEY = "0123456789abcdef"
THREADS = 3


@dataclass
class Controlled:
    """A server under explicit control with its repository, and heads that it may serve as `demo`."""

    server: EmbeddedServer
    models: Path
    connection: ControlledServer
    heads: dict[str, BuiltHead]
    source: Path
    """Where the recipe looks for the head."""
    recipe: Path

    def serve(self, name: str) -> None:
        """Serve the head of this name, whatever was served before."""
        roll_out("demo", self.models, self.heads[name].folder, self.connection)

    @property
    def serving(self) -> str:
        """Name of the head that answers."""
        answer = self.connection.score_pictures("demo", read_proof(self.models))
        assert answer is not None
        (revision,) = set(answer.revisions)
        return next(name for name, head in self.heads.items() if head.revision == revision)

    @property
    def proved(self) -> list[str]:
        """Names of the heads in the proof; the one that the repository serves comes last."""
        names = {head.revision: name for name, head in self.heads.items()}
        return [names[head.revision] for head in read_proof(self.models).heads]

    @property
    def on_disk(self) -> str:
        """Name of the head that a server started now would serve."""
        revision = read_served(self.models, "demo").manifest.revision
        return next(name for name, head in self.heads.items() if head.revision == revision)


@pytest.fixture(scope="module")
def controlled(demo, encoder, tmp_path_factory) -> Iterator[Controlled]:
    folder = tmp_path_factory.mktemp("controlled")
    class_names = demo.heads[0].class_names
    thresholds = {"first": 0.5, "second": 0.4, "third": 0.3}
    heads = {
        name: built_head(folder / name, encoder, class_names, seed, threshold)
        for seed, (name, threshold) in enumerate(thresholds.items())
    }
    shutil.copytree(heads["first"].folder, folder / "source")
    data = demo.model_dump(mode="json", exclude_defaults=True) | {"name": "rolled", "serving": {"watch": True}}
    data["heads"] = [{"name": "demo", "class_names": class_names, "source": str(folder / "source")}]
    (folder / "rolled.yaml").write_text(json.dumps(data))  # JSON is YAML
    install(parse_recipe(data), folder / "models")
    settings = ServerSettings.on_free_ports(folder / "log", exit_timeout_s=4, control="explicit", admin_key=KEY)
    with (
        EmbeddedServer(folder / "models", settings) as server,
        ControlledServer(server.grpc_url, KEY) as connection,
    ):
        yield Controlled(server, folder / "models", connection, heads, folder / "source", folder / "rolled.yaml")


# Load


class Answer(NamedTuple):
    revision: int
    score: float
    decision: int


@dataclass
class Traffic:
    answers: list[Answer] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


@contextmanager
def traffic(url: str) -> Iterator[Traffic]:
    """Score one picture without pause until the block ends."""
    seen, done = Traffic(), threading.Event()

    def work() -> None:
        tensor = picture()
        with grpc.InferenceServerClient(url) as client:
            while not done.is_set():
                try:
                    seen.answers.append(scored(client, tensor))
                except InferenceServerException as error:
                    seen.failures.append(str(error))

    workers = [threading.Thread(target=work) for _ in range(THREADS)]
    for worker in workers:
        worker.start()
    try:
        yield seen
    finally:
        done.set()
        for worker in workers:
            worker.join()


def picture() -> grpc.InferInput:
    tensor = grpc.InferInput("image", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[jpeg()]], dtype=object))
    return tensor


def scored(client: grpc.InferenceServerClient, tensor: grpc.InferInput) -> Answer:
    result = client.infer("image_score", [tensor], client_timeout=PATIENCE_S)
    assert result is not None
    names = ("demo_revision", "demo", "demo_decision")
    revision, score, decision = (np.asarray(result.as_numpy(name))[0, 0] for name in names)
    return Answer(int(revision), float(score), int(decision))


def expected_scores(controlled: Controlled) -> dict[int, float]:
    """The score that each head gives the picture of the load, by revision."""
    with grpc.InferenceServerClient(controlled.server.grpc_url) as client:
        result = client.infer("image_embedding", [picture()])
    assert result is not None
    embedding = np.asarray(result.as_numpy("embedding"))[0]
    return {head.revision: head.score(embedding) for head in controlled.heads.values()}


def test_heads_are_replaced_and_rolled_back_under_load_without_a_failed_or_mixed_answer(controlled):
    """Each answer's score is that of the revision it names; after a rollout only the new one answers."""
    controlled.serve("first")
    expected = expected_scores(controlled)
    assert np.ptp(list(expected.values())) > 0.01
    changes, before = [], len(installed_versions(controlled.models / "demo_head"))
    with traffic(controlled.server.grpc_url) as seen:
        for step in ("second", "third", None, None, "third"):
            if step is None:
                changes.append(roll_back("demo", controlled.models, controlled.connection))
            else:
                folder = controlled.heads[step].folder
                changes.append(roll_out("demo", controlled.models, folder, controlled.connection))
            start = len(seen.answers) + THREADS  # that many were under way
            until(lambda start=start: len(seen.answers) >= start + 10)
            assert {answer.revision for answer in seen.answers[start:]} == {changes[-1].after.manifest.revision}
    assert not seen.failures
    assert {answer.revision for answer in seen.answers} == set(expected)
    assert all(abs(answer.score - expected[answer.revision]) < 1e-4 for answer in seen.answers)
    names = {head.revision: name for name, head in controlled.heads.items()}
    assert [names[change.after.manifest.revision] for change in changes] == [
        "second", "third", "second", "first", "third",
    ]  # fmt: skip
    assert not any(change.watch_problem for change in changes)
    assert len(installed_versions(controlled.models / "demo_head")) == before + 3


def test_clients_learn_the_thresholds_of_the_version_that_serves(controlled):
    for name, threshold in (("second", 0.4), ("first", 0.5)):
        controlled.serve(name)
        with Client(controlled.server.grpc_url) as client:
            (head,) = client.heads()
        assert [[point.value for point in row] for row in head.thresholds or ()] == [[threshold]]


def test_connected_clients_follow_another_number_of_thresholds(controlled, tmp_path):
    """The new head has the second's thresholds and one above; who is connected reads the words of the new row."""
    controlled.serve("first")
    shutil.copytree(controlled.heads["second"].folder, tmp_path / "two")
    manifest = read_head(tmp_path / "two")
    two = [[Threshold(value=value, operating_point="fixed") for value in (1e-6, 0.999999)]]
    write_manifest(manifest.model_copy(update={"thresholds": two}), tmp_path / "two" / "head.json")
    build_head(tmp_path / "two", 18)
    with Client(controlled.server.grpc_url) as client:
        assert client.score([jpeg()])[0].heads["demo"].decisions[0] in (0, 1)
        with pytest.raises(ManifestError, match="--allow-other-decisions"):
            roll_out("demo", controlled.models, tmp_path / "two", controlled.connection)
        roll_out("demo", controlled.models, tmp_path / "two", controlled.connection, other_decisions=True)
        assert client.score([jpeg()])[0].heads["demo"].decisions[0] == 1
        (head,) = client.heads()
        assert len((head.thresholds or [[]])[0]) == 2
    roll_back("demo", controlled.models, controlled.connection)
    assert controlled.serving == "first"


def test_the_watch_compares_with_the_training_of_the_version_that_serves(controlled):
    controlled.serve("first")
    controlled.serve("second")
    with grpc.InferenceServerClient(controlled.server.grpc_url) as client:
        scored(client, picture())
    revision = f'revision="{controlled.heads["second"].revision:016x}"'

    def metric(name: str, label: str) -> list[str]:
        with urllib.request.urlopen(controlled.server.metrics_url) as answer:
            lines = answer.read().decode().splitlines()
        return [line.rsplit(" ", 1)[1] for line in lines if line.startswith(f"{name}{{") and label in line]

    until(lambda: metric("clipsieve_head_revision", revision) == ["1"])  # handed over once a second
    until(lambda: metric("clipsieve_training_score_ratio", 'le="0.4"') == ["0.5"])


def test_what_serves_already_is_not_installed_again(controlled):
    controlled.serve("first")
    before = installed_versions(controlled.models / "demo_head")
    change = roll_out("demo", controlled.models, controlled.heads["first"].folder, controlled.connection)
    assert change.before == change.after
    assert installed_versions(controlled.models / "demo_head") == before


def test_a_second_server_of_the_repository_only_follows(controlled):
    """The server still serves the old head, which the repository no longer does."""
    controlled.serve("first")
    folder = controlled.heads["second"].folder
    controlled.serve("second")
    roll_back("demo", controlled.models, controlled.connection)
    served = read_served(controlled.models, "demo")
    config = served.folder / "config.pbtxt"
    newest = installed_versions(served.folder)[-1]
    config.write_text(edited(served.config, newest, {}, config))  # as the rollout on another server left it
    assert (controlled.serving, controlled.on_disk) == ("first", "second")
    change = roll_out("demo", controlled.models, folder, controlled.connection)
    assert change.after.version == newest
    assert controlled.serving == "second"


# The proof


def still_proved(controlled: Controlled) -> list[str]:
    """The points in which a server's answers miss the repository's proof."""
    proof = read_proof(controlled.models)
    with grpc.InferenceServerClient(controlled.server.grpc_url) as client:
        return misses(proof, ask(client, proof))


def test_the_proof_stays_true_through_rollout_and_rollback(controlled):
    """The proof has the head that serves, and the one that other servers of the repository may still have."""
    controlled.serve("first")
    for name in ("second", "third"):
        controlled.serve(name)
        assert controlled.proved[-1] == name
        assert still_proved(controlled) == []
        assert check(controlled.models) == []
    assert controlled.proved == ["second", "third"]
    roll_back("demo", controlled.models, controlled.connection)
    assert controlled.proved == ["third", "second"]
    roll_back("demo", controlled.models, controlled.connection)
    assert controlled.proved == ["second", "first"]
    assert controlled.serving == "first"
    assert still_proved(controlled) == []
    assert check(controlled.models) == []


def test_following_adds_to_the_proof_and_takes_nothing_from_it(controlled):
    controlled.serve("first")
    controlled.serve("second")
    set_head(controlled.models, None, "demo", kept=[controlled.heads["first"].revision])  # knows the old one alone
    assert any("answers, known are" in line for line in still_proved(controlled))
    assert any("is not in it" in problem for problem in check(controlled.models))
    controlled.serve("second")  # follows, and teaches the proof
    assert still_proved(controlled) == []
    assert controlled.proved == ["first", "second"]


def test_scores_of_pictures_that_are_wrong_are_taken_back(controlled, monkeypatch):
    """The test shifts scores as an encoder would that is not the verified one."""
    controlled.serve("first")
    whole = ControlledServer.score_pictures

    def shifted(server: ControlledServer, head: str, proof: Proof) -> HeadAnswer | None:
        answer = whole(server, head, proof)
        assert answer is not None
        return replace(answer, scores=[[value + 0.2 for value in row] for row in answer.scores])

    monkeypatch.setattr(ControlledServer, "score_pictures", shifted)
    with pytest.raises(ServingError, match=r"(?s)image_score: demo: .*±0.05 is allowed.*Nothing has changed"):
        controlled.serve("second")
    monkeypatch.undo()
    assert (controlled.serving, controlled.on_disk, controlled.proved) == ("first", "first", ["first"])
    assert still_proved(controlled) == []


def test_two_rollouts_at_once_lose_nothing_of_the_proof(repository, tmp_path):
    models = Path(shutil.copytree(repository, tmp_path / "models"))
    (demo,) = read_proof(models).heads
    names = [f"head{index}" for index in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: set_head(models, replace(demo, name=name), name, kept=[]), names))
    assert sorted(read_proof(models).head_names) == ["demo", *names]


# Failures


def test_a_candidate_that_scores_otherwise_is_not_installed(controlled, monkeypatch):
    """The candidate's scores are those of the file; here the expectation is wrong instead."""
    controlled.serve("first")
    before, truth = installed_versions(controlled.models / "demo_head"), rollout.probe_set

    def wrong(folder: Path, manifest: HeadManifest, proof: Proof) -> ProbeSet:
        probes = truth(folder, manifest, proof)
        return replace(probes, scores=probes.scores + 0.1)

    monkeypatch.setattr(rollout, "probe_set", wrong)
    with pytest.raises(ServingError, match=r"tried and not installed: scores differ from the file's by 0\.1"):
        controlled.serve("second")
    assert (controlled.serving, controlled.on_disk) == ("first", "first")
    assert installed_versions(controlled.models / "demo_head") == before


def garbage(controlled: Controlled) -> bytes:
    return b"garbage"


def third_head(controlled: Controlled) -> bytes:
    return (controlled.heads["third"].folder / "model.onnx").read_bytes()


@pytest.mark.parametrize(
    ("contents", "expected"),
    [(garbage, "cannot load demo_head"), (third_head, "demo_head: revision .* answers, expected")],
)
def test_another_file_than_the_candidates_is_taken_back(controlled, monkeypatch, contents, expected):
    """The file in the repository is not the one that the server tried: it is damaged, or another head."""
    controlled.serve("first")
    before, whole = installed_versions(controlled.models / "demo_head"), rollout.add_version

    def damaged(served: Served, source: Path, version: int) -> Path:
        added = whole(served, source, version)
        (added / "model.onnx").write_bytes(contents(controlled))
        return added

    monkeypatch.setattr(rollout, "add_version", damaged)
    with traffic(controlled.server.grpc_url) as seen:
        with pytest.raises(ServingError, match=rf"(?s){expected}.*Nothing has changed: version \d+"):
            controlled.serve("second")
        start = len(seen.answers)
        until(lambda: len(seen.answers) >= start + 10)
    assert not seen.failures
    assert (controlled.serving, controlled.on_disk) == ("first", "first")
    assert installed_versions(controlled.models / "demo_head") == before


def test_an_interrupted_rollout_is_taken_back(controlled, monkeypatch):
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    controlled.serve("first")
    before = installed_versions(controlled.models / "demo_head")
    monkeypatch.setattr(rollout, "check_serves", interrupt)
    with pytest.raises(KeyboardInterrupt):
        roll_out("demo", controlled.models, controlled.heads["second"].folder, controlled.connection)
    assert controlled.proved == ["first"]
    assert (controlled.serving, controlled.on_disk) == ("first", "first")
    assert installed_versions(controlled.models / "demo_head") == before


def test_triton_keeps_the_old_version_when_a_damaged_one_is_loaded_past_the_rollout(controlled):
    controlled.serve("first")
    folder = controlled.models / "demo_head"
    config = folder / "config.pbtxt"
    text = config.read_text()
    (folder / "99").mkdir()
    (folder / "99" / "model.onnx").write_bytes(b"garbage")
    try:
        for broken, expected in (
            (edited(text, 99, {}, config), "version 99 is at UNAVAILABLE"),
            ("{", "failed to load"),
        ):
            config.write_text(broken)
            with pytest.raises(ServingError, match=expected):
                controlled.connection.load("demo_head")
            assert controlled.serving == "first"
    finally:
        config.write_text(text)
        shutil.rmtree(folder / "99")
        controlled.connection.load("demo_head")


def test_another_repository_than_the_servers_is_noticed(controlled, tmp_path):
    controlled.serve("first")
    other = Path(shutil.copytree(controlled.models, tmp_path / "models"))
    controlled.serve("second")
    with pytest.raises(ServingError, match="is it another repository"):
        roll_out("demo", other, controlled.heads["third"].folder, controlled.connection)
    assert read_served(other, "demo").manifest.revision == controlled.heads["first"].revision


# The key


@pytest.mark.parametrize("key", [None, "", "short", "sixteen letters!", "0123456789abcde=0"])
def test_explicit_control_wants_a_key(key):
    with pytest.raises(ServingError, match="openssl rand -hex 16"):
        control_options("explicit", key)


def test_without_control_nobody_has_the_key():
    one, other = control_options("none", KEY), control_options("none", KEY)
    assert one[0] == "--model-control-mode=none"
    assert len(one) == 3
    assert one[1:] != other[1:]
    assert KEY not in " ".join(one)


def refusal_of(call: Callable[[], object]) -> str:
    with pytest.raises(InferenceServerException) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize("headers", [None, grpc_admin_headers("another-key-0000")])
def test_admin_apis_are_refused_without_the_key(controlled, headers):
    with grpc.InferenceServerClient(controlled.server.grpc_url) as client:
        calls = [
            lambda: client.load_model("demo_head", headers=headers),
            lambda: client.unload_model("demo_head", headers=headers),
            lambda: client.get_model_repository_index(headers=headers),
            lambda: client.get_system_shared_memory_status(headers=headers),
            lambda: client.get_trace_settings(headers=headers),
            lambda: client.get_log_settings(headers=headers),
        ]
        assert all("protocol is restricted" in refusal_of(call) for call in calls)
        assert client.get_model_repository_index(headers=grpc_admin_headers(KEY)) is not None


def http_status(url: str, key: str | None) -> int:
    request = urllib.request.Request(url, data=b"{}", headers={ADMIN_HEADER: key} if key else {})
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_admin_apis_are_refused_without_the_key_over_http(controlled):
    url = f"http://{controlled.server.http_url}/v2/repository/index"
    assert [http_status(url, key) for key in (None, "another-key-0000", KEY)] == [403, 403, 200]


def test_the_wrong_key_and_a_server_without_control_are_explained(controlled, server):
    controlled.serve("first")
    folder, url = controlled.heads["second"].folder, controlled.server.grpc_url
    with ControlledServer(url, "another-key-0000") as other, pytest.raises(ServingError, match="CLIPSIEVE_ADMIN_KEY"):
        roll_out("demo", controlled.models, folder, other)
    with ControlledServer(server.grpc_url, KEY) as other, pytest.raises(ServingError, match="--control explicit"):
        other.load("demo_head")
    assert controlled.on_disk == "first"


# The command


def test_the_command_rolls_out_and_back_and_a_restarted_server_serves_the_same(controlled, capsys, monkeypatch):
    monkeypatch.setenv("CLIPSIEVE_ADMIN_KEY", KEY)
    controlled.serve("first")
    for name in ("model.onnx", "head.json"):
        shutil.copy(controlled.heads["second"].folder / name, controlled.source / name)
    command = ["demo", "--recipe", str(controlled.recipe), "--repository", str(controlled.models)]
    command += ["--url", controlled.server.grpc_url]
    assert run_step("serving.rollout", lambda: rollout.main(command)) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["served"]["revision"] == f"{controlled.heads['second'].revision:016x}"
    assert "serves, before it version" in shown.err
    controlled.server.stop(grace_s=5)
    controlled.server.start_again()
    assert controlled.serving == "second"
    assert run_step("serving.rollout", lambda: rollout.main([*command, "--rollback"])) == 0
    assert json.loads(capsys.readouterr().out)["before"]["revision"] == f"{controlled.heads['second'].revision:016x}"
    assert controlled.serving == "first"


def test_without_a_key_the_command_says_how_to_make_one(controlled, capsys, monkeypatch):
    monkeypatch.delenv("CLIPSIEVE_ADMIN_KEY", raising=False)
    assert run_step("serving.rollout", lambda: rollout.main(["demo", "--recipe", str(controlled.recipe)])) == 1
    assert "export CLIPSIEVE_ADMIN_KEY=" in capsys.readouterr().err
