"""A head's versions on disk: the config's text, the probe set, and which head may replace which."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpc
from heads import BuiltHead, built_head

from build.proof import COUNT
from build.repository_check import check
from build.repository_configs import read_config
from common.manifest import ManifestError
from common.paths import MODEL_REPOSITORY
from common.proof import Proof
from common.proof_file import read_proof
from common.served_versions import installed_versions, served_versions
from serving.config_text import edited, parsed
from serving.embedded import EmbeddedServer, ServerSettings
from serving.head_probe import PROBES, ProbeSet, disagreement, probe_set
from serving.head_versions import add_version, only_rollout, read_replaced, read_served, write_config
from serving.rollout import check_fits
from serving.triton_wheel import ServingError
from serving.watched_head import watched_text

HERE = Path("config.pbtxt")
STAMPED = """\
# Stamped; do not edit.
name: "demo_head"
max_batch_size: 32
parameters {
  key: "thresholds"
  value {
    string_value: "[[{\\"value\\": 0.5}]]"
  }
}
"""


# The config as text


def test_a_version_is_added_and_replaced_and_nothing_else_changes():
    pinned = edited(STAMPED, 2, {}, HERE)
    assert pinned.startswith(STAMPED)
    assert parsed(pinned, HERE).version_policy.specific.versions == [2]
    again = edited(pinned, 13, {}, HERE)
    assert again.replace("[ 13 ]", "[ 2 ]") == pinned
    assert edited(again, 13, {}, HERE) == edited(again, None, {}, HERE) == again


def test_a_policy_in_several_lines_is_replaced():
    text = STAMPED + "version_policy {\n  specific {\n    versions: 4\n  }\n}\n"
    assert parsed(edited(text, 5, {}, HERE), HERE).version_policy.specific.versions == [5]


@pytest.mark.parametrize("value", ['[["a"]]', "two\nlines", "back\\slash", "ünïcode", ""])
def test_a_parameters_value_is_replaced_or_added(value):
    text = edited(STAMPED, 1, {"thresholds": value, "notice": value}, HERE)
    parameters = parsed(text, HERE).parameters
    assert [parameters[key].string_value for key in ("thresholds", "notice")] == [value, value]
    assert len(parameters) == 2


@pytest.mark.parametrize("model", ["nsfw_head", "aesthetic_head"])
def test_the_checked_in_configs_keep_their_comments(model):
    path = MODEL_REPOSITORY / model / "config.pbtxt"
    text = path.read_text()
    changed = edited(text, 2, {"thresholds": "[[]]"}, path)
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        line for line in changed.splitlines() if line.startswith("#")
    ]


def test_a_config_that_does_not_parse_is_named_with_its_line():
    with pytest.raises(ServingError, match=r"config.pbtxt:1:\d+"):
        edited("nonsense { }", 1, {}, HERE)


# Heads on disk


@pytest.fixture(scope="module")
def first(demo, encoder, tmp_path_factory) -> BuiltHead:
    return built_head(tmp_path_factory.mktemp("first"), encoder, demo.heads[0].class_names, 1, 0.5)


@pytest.fixture(scope="module")
def second(demo, encoder, tmp_path_factory) -> BuiltHead:
    return built_head(tmp_path_factory.mktemp("second"), encoder, demo.heads[0].class_names, 2, 0.4)


@pytest.fixture
def models(repository, first, tmp_path) -> Path:
    """A repository of its own, which serves the head `first`."""
    copy = Path(shutil.copytree(repository, tmp_path / "models"))
    for name in ("model.onnx", "head.json"):
        shutil.copy(first.folder / name, copy / "demo_head" / "1")
    return copy


POLICIES = {
    "": [10],
    "all { }": [0, 1, 2, 10],
    "latest { }": [],
    "latest { num_versions: 1 }": [10],
    "latest { num_versions: 2 }": [2, 10],
    "specific { versions: [ 2, 1 ] }": [1, 2],
    "specific { versions: [ 2, 9 ] }": [2],
    "specific { versions: [ 9 ] }": [],
    "specific { }": [],
}
"""What Triton serves of the versions 0, 1, 2 and 10, by the config's version_policy; 03 is no version."""


def _serve(folder: Path, policy: str, numbers: Iterable[str] = ("0", "2", "03", "10")) -> Path:
    """The model with these versions beside the first, and this version_policy."""
    for number in numbers:
        shutil.copytree(folder / "1", folder / number)
    if policy:
        with (folder / "config.pbtxt").open("a") as config:
            config.write(f"version_policy {{ {policy} }}\n")
    return folder


@pytest.mark.parametrize("policy", POLICIES)
def test_the_check_and_the_rollout_have_one_answer_to_which_version_is_served(models, policy):
    folder = _serve(models / "demo_head", policy)
    served = served_versions(folder, read_config(folder / "config.pbtxt"))
    assert served == POLICIES[policy]
    problems = [problem for problem in check(models) if "version_policy" in problem]
    if len(served) == 1:
        assert problems == []
        assert [read_served(models, "demo").version] == served
        return
    assert [str(served) in problem or "serves none" in problem for problem in problems] == [True]
    with pytest.raises(ServingError, match="needs one that serves a single version") as error:
        read_served(models, "demo")
    assert str(served) in str(error.value)


def test_the_server_serves_what_the_policies_say(repository, tmp_path):
    models = Path(shutil.copytree(repository, tmp_path / "models"))
    expected = {f"head{number}": versions for number, versions in enumerate(POLICIES.values()) if versions}
    for number, (policy, versions) in enumerate(POLICIES.items()):
        if versions:  # a server with a model of no version does not start
            head = Path(shutil.copytree(models / "demo_head", models / f"head{number}"))
            _serve(head, policy)
            config = head / "config.pbtxt"
            config.write_text(config.read_text().replace('"demo_head"', f'"{head.name}"'))
    with (
        EmbeddedServer(models, ServerSettings.on_free_ports(tmp_path / "log")) as server,
        grpc.InferenceServerClient(server.grpc_url) as client,
    ):
        ready = {
            name: [number for number in (0, 1, 2, 3, 10) if client.is_model_ready(name, str(number))]
            for name in expected
        }
    assert ready == expected


def test_a_policy_of_several_versions_serves_one_where_there_is_one(models):
    _serve(models / "demo_head", "all { }", numbers=())
    served = read_served(models, "demo")
    assert (served.version, served.config.count("specific: { versions: [ 1 ] }")) == (1, 1)


def test_a_new_version_is_not_served_before_the_config_says_so(models, first, second):
    before = read_served(models, "demo")
    assert (before.version, before.manifest) == (1, first.manifest)
    added = add_version(before, second.folder, 2)
    assert sorted(path.name for path in added.iterdir()) == ["head.json", "model.onnx", "rollout.json"]
    assert read_served(models, "demo") == before
    assert installed_versions(models / "demo_head") == [1, 2]
    assert not list((models / "demo_head").glob(".*"))


def test_the_way_back_is_what_was_replaced_and_not_the_version_below(models, second):
    first_served = read_served(models, "demo")
    for number in (2, 3):
        add_version(first_served, second.folder, number)  # 3 too replaces 1
    write_config(first_served, edited(first_served.config, 3, {}, HERE))
    replaced = read_replaced(read_served(models, "demo"))
    assert (replaced.version, replaced.config) == (1, first_served.config)


def test_a_copy_that_fails_leaves_nothing(models, tmp_path):
    with pytest.raises(OSError, match=r"head\.json"):
        add_version(read_served(models, "demo"), tmp_path / "absent", 2)
    assert installed_versions(models / "demo_head") == [1]
    assert not list((models / "demo_head").glob(".*"))


def test_a_first_version_has_nothing_to_go_back_to(models):
    with pytest.raises(ServingError, match=r"version 1 \(revision .*replaced no other"):
        read_replaced(read_served(models, "demo"))


def test_a_version_that_is_gone_is_named(models, second):
    served = read_served(models, "demo")
    add_version(served, second.folder, 2)
    write_config(served, edited(served.config, 2, {}, HERE))
    shutil.rmtree(models / "demo_head" / "1")
    with pytest.raises(ServingError, match="version 1 is gone"):
        read_replaced(read_served(models, "demo"))


def test_two_rollouts_do_not_mix(models):
    folder = models / "demo_head"
    with only_rollout(folder), pytest.raises(ServingError, match="another rollout"), only_rollout(folder):
        pass
    with only_rollout(folder):
        pass


def test_a_head_that_is_not_there_is_named(models):
    with pytest.raises(ServingError, match="other_head: no head is installed here"):
        read_served(models, "other")
    with (
        pytest.raises(ServingError, match="other_head: no head is installed here"),
        only_rollout(models / "other_head"),
    ):
        pass


# What may take the place of what


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"labels": ["odd"], "class_names": ["even", "odd"]}, r"labels: served \['round'\], new \['odd'\]"),
        ({"task": "regression"}, "task: served 'binary', new 'regression'"),
        ({"thresholds": [[]]}, r"thresholds of each label: served \[1\], new \[0\]"),
    ],
)
def test_other_outputs_are_refused_with_both_values(models, second, change, expected):
    other = second.manifest.model_copy(update=change)
    with pytest.raises(ManifestError, match=expected):
        check_fits(other, read_served(models, "demo"), models)


def test_another_number_of_thresholds_is_taken_where_it_is_allowed(models, second):
    other = second.manifest.model_copy(update={"thresholds": [[]]})
    with pytest.raises(ManifestError, match="say --allow-other-decisions"):
        check_fits(other, read_served(models, "demo"), models)
    check_fits(other, read_served(models, "demo"), models, other_decisions=True)
    with pytest.raises(ManifestError, match="Give it a name of its own"):
        check_fits(
            other.model_copy(update={"task": "regression"}), read_served(models, "demo"), models, other_decisions=True
        )


def test_a_head_of_another_encoder_is_refused(models, second):
    fingerprint = second.manifest.encoder.model_copy(update={"weights_sha256": "f" * 64})
    other = second.manifest.model_copy(update={"encoder": fingerprint})
    with pytest.raises(ManifestError, match="the head was trained on 'ffff"):
        check_fits(other, read_served(models, "demo"), models)


# The probe set


@pytest.fixture(scope="module")
def proof(repository: Path) -> Proof:
    return read_proof(repository)


ROWS = PROBES + 2 * COUNT
"""Unit vectors, then the proof's reference and verified embeddings."""


def answers(probes: ProbeSet) -> dict[str, np.ndarray]:
    decisions = (probes.scores >= np.float32(0.5)).astype(np.int32)
    return {"score": probes.scores, "decision": decisions, "revision": np.full((ROWS, 1), probes.revision)}


def test_the_files_own_answers_agree(first, proof):
    probes = probe_set(first.folder, first.manifest, proof)
    assert probes.embeddings.shape == (ROWS, first.manifest.encoder.embed_dim)
    assert len(np.unique(probes.scores)) > 16
    assert disagreement(probes, answers(probes)) is None
    assert probes.proved.revision == first.revision
    assert [row[0] for row in probes.proved.scores] == [
        pytest.approx(first.score(np.array(picture.reference, np.float32)), abs=1e-6) for picture in proof.pictures
    ]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"revision": np.full((ROWS, 1), 7)}, "revision 0000000000000007 answers, expected"),
        ({"score": np.zeros((ROWS, 2), np.float32)}, rf"shape \({ROWS}, 2\), expected \({ROWS}, 1\)"),
        ({"score": np.full((ROWS, 1), np.nan, np.float32)}, "differ from the file's by nan"),
        ({"decision": np.full((ROWS, 1), 9)}, f"{ROWS} of {ROWS} decisions are not what the thresholds say"),
    ],
)
def test_what_disagrees_is_said(first, proof, change, expected):
    probes = probe_set(first.folder, first.manifest, proof)
    assert re.search(expected, str(disagreement(probes, answers(probes) | change)))


def test_a_damaged_or_foreign_file_is_refused_before_any_server_sees_it(first, second, proof, tmp_path):
    with pytest.raises(ServingError, match=r"model\.onnx: not found"):
        probe_set(tmp_path, first.manifest, proof)
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(ServingError, match="onnxruntime cannot run it"):
        probe_set(tmp_path, first.manifest, proof)
    with pytest.raises(ServingError, match=f"that of head.json {first.revision:016x}; build it again"):
        probe_set(second.folder, first.manifest, proof)


# The watch


def test_the_watch_is_told_of_the_training_of_the_head_that_serves(second):
    text = 'name: "demo_watch"\nparameters { key: "watched" value { string_value: "{\\"head\\": \\"demo\\"}" } }\n'
    parameter = parsed(watched_text(text, second.manifest, HERE), HERE).parameters["watched"].string_value
    assert f'"training_revision": "{second.revision:016x}"' in parameter
    assert '"edges": [0.4]' in parameter
    unknown = second.manifest.model_copy(update={"score_distribution": None})
    again = parsed(watched_text(text, unknown, HERE), HERE).parameters["watched"].string_value
    assert "training" not in again
    assert '"head": "demo"' in again
