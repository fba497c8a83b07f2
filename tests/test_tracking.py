from __future__ import annotations

import json
import os
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from stores import Row, demo_store
from tiny_encoder import EMBED_DIM, write_tiny_encoder
from waiting import until

from build.head import read_weights
from common import paths
from common.manifest import HeadManifest, read_head
from recipes.errors import run_step
from recipes.head_section import Fit, Head
from recipes.schema import load_recipe
from serving.tritonserver import held_ports
from training import fit, tracked_run, tracking
from training.calibrate import scores_from_logits
from training.head import head_from_layers, logits_of
from training.losses import TuningCurve
from training.mlflow_model import ServedHead
from training.plots import tuning_curve_png

ROWS = np.random.default_rng(5).normal(size=(7, EMBED_DIM)).astype(np.float32)
MLFLOW = Path(os.environ.get("CLIPSIEVE_MLFLOW", paths.ROOT / ".mlflow" / "bin" / "mlflow"))
NO_MLFLOW = "the full mlflow has an environment of its own: make mlflow"
# mlflow 3.17 uses what sqlalchemy 2.1 has deprecated.
OF_SQLALCHEMY = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for a fit of the demo's head, whose store is already written."""
    monkeypatch.setattr(paths, "ARTIFACTS", tmp_path / "artifacts")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    encoder = write_tiny_encoder(paths.encoder_folder(load_recipe("demo"))).fingerprint()
    embeddings = np.random.default_rng(0).normal(size=(80, EMBED_DIM)).astype(np.float32)
    embeddings[1::2, 0] += 2
    demo_store(encoder).append(
        [
            Row(f"{n}", f"{n}.png", f"{n:064x}", 9, 9, ["angular", "round"][n % 2], None, embedding)
            for n, embedding in enumerate(embeddings)
        ]
    )
    return paths.ARTIFACTS / "demo" / "heads" / "demo"


def _fit(*arguments: str) -> int:
    return run_step("training.fit", lambda: fit.main(["--recipe", "demo", *arguments]))


def _scores(manifest: HeadManifest, folder: Path) -> np.ndarray:
    logits = logits_of(head_from_layers(manifest.layers, read_weights(manifest, folder)), ROWS)
    return scores_from_logits(manifest, logits)


def test_without_track_nothing_is_tracked(folder: Path) -> None:
    assert tracking.tracking_uri(None) is None
    assert _fit() == 0
    assert read_head(folder).training.mlflow_run_id is None
    assert not (paths.ARTIFACTS / "mlflow").exists()


def test_the_environment_or_the_argument_say_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere")
    assert tracking.tracking_uri(None) == "http://elsewhere"
    assert tracking.tracking_uri("") == "http://elsewhere"
    assert tracking.tracking_uri("http://here") == "http://here"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert tracking.tracking_uri("") == tracking.local_uri()


def test_without_the_package_the_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setitem(__import__("sys").modules, "mlflow", None)
    assert _fit("--track") == 1
    assert "needs the extra `tracking`" in capsys.readouterr().err
    assert not folder.exists()


def test_every_number_has_a_name() -> None:
    metrics = tracking.flat_metrics(
        {"auroc": 0.9, "auroc_95_interval": [0.8, 1.0], "labels": {"gore": {"ece": 0.1}}, "precision": None}
    )
    assert metrics == {
        "auroc": 0.9,
        "auroc_95_interval_low": 0.8,
        "auroc_95_interval_high": 1.0,
        "labels/gore/ece": 0.1,
    }


def test_every_setting_has_a_name() -> None:
    params = tracking.flat_params(Head(name="nsfw", class_names=["safe", "nsfw"], fit=Fit(learning_rate=0.5)))
    assert params["fit.learning_rate"] == "0.5"
    assert params["class_names"] == "['safe', 'nsfw']"
    assert "prevalence" not in params


def test_the_commit_of_a_checkout_is_known(tmp_path: Path) -> None:
    assert tracking.git_commit(tmp_path) is None
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run([*git, *words], cwd=tmp_path, check=True)
    commit = tracking.git_commit(tmp_path)
    assert commit is not None
    assert len(commit) == 40


def test_the_model_folder_scores_as_torch_does(folder: Path, tmp_path: Path) -> None:
    assert _fit() == 0
    tracking.write_model(tmp_path / "model", folder, "run")
    answers = ServedHead(tmp_path / "model" / "data").predict(ROWS)
    expected = _scores(read_head(folder), folder)[:, 0]
    assert [row["score"]["round"] for row in answers] == pytest.approx(expected.tolist(), abs=1e-6)
    assert [row["decision"]["round"] for row in answers] == (expected >= 0.5).astype(int).tolist()


@pytest.mark.parametrize("rows", [np.zeros((2, EMBED_DIM + 1)), np.zeros(EMBED_DIM), np.full((1, EMBED_DIM), np.nan)])
def test_rows_that_are_no_embeddings_are_refused(folder: Path, rows: np.ndarray) -> None:
    assert _fit() == 0
    with pytest.raises(ValueError, match=r"expected rows of|not finite"):
        ServedHead(folder).predict(rows)


def test_an_unreachable_server_writes_nothing(folder: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert _fit("--track", "http://127.0.0.1:9") == 1
    assert "http://127.0.0.1:9 does not take the run" in capsys.readouterr().err
    assert not folder.exists()


@OF_SQLALCHEMY
def test_a_local_run_is_found_again_from_the_head(folder: Path, capsys) -> None:
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    assert _fit("--track") == 0
    capsys.readouterr()
    tracking.main(["--recipe", "demo"])
    run, manifest = json.loads(capsys.readouterr().out), read_head(folder)
    assert run["run_id"] == manifest.training.mlflow_run_id
    assert run["status"] == "FINISHED"
    assert run["metrics"]["auroc"] == pytest.approx(manifest.metrics.model_dump()["auroc"])
    assert run["params"]["fit.hidden_sizes"] == "[64]"
    assert run["tags"]["weights_sha256"] == manifest.weights_sha256
    assert (Path(run["artifacts"].removeprefix("file://")) / "head" / "roc.png").is_file()


@OF_SQLALCHEMY
@pytest.mark.parametrize("hidden_sizes", ["[64]", "[]"])
def test_the_pictures_of_a_run_come_from_mlflow_alone(folder: Path, tmp_path: Path, capsys, hidden_sizes: str) -> None:
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    assert _fit("--track", "--set", f"heads.demo.fit.hidden_sizes={hidden_sizes}") == 0
    run_id = read_head(folder).training.mlflow_run_id
    pictures = {path.name: path.read_bytes() for path in folder.glob("*.png")}
    shutil.rmtree(folder)
    capsys.readouterr()
    tracking.main(["--run", str(run_id), "--plots", str(tmp_path / "pictures")])
    drawn = {path.name: path.read_bytes() for path in (tmp_path / "pictures").iterdir()}
    assert drawn.keys() == pictures.keys()
    assert drawn == pictures  # the curve too, drawn anew from each epoch's metrics
    assert json.loads(capsys.readouterr().out)["params"]["fit.hidden_sizes"] == hidden_sizes


@OF_SQLALCHEMY
def test_the_course_of_a_fine_tuning_is_drawn_with_its_auroc(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("sqlalchemy")
    curve = TuningCurve([0.9, 0.5], [0.8, 0.7], auroc=[0.7, 0.9])
    with tracking.started_run(tracking.local_uri(), "demo") as run:
        run.log_figures({}, {"auroc": 0.9}, curve, {})
    client = tracking._client(tracking.local_uri())
    assert tracked_run.history(client, run.id, "auroc_validation") == curve.auroc
    assert tracked_run.drawn_pictures(client, run.id) == {"curves.png": tuning_curve_png(curve)}


@OF_SQLALCHEMY
def test_a_run_that_is_not_there_and_one_without_epochs_say_so(folder: Path, tmp_path: Path, capsys) -> None:
    pytest.importorskip("sqlalchemy")
    with tracking.started_run(tracking.local_uri(), "demo") as run:
        pass
    for run_id, problem in (("0" * 32, "does not have run"), (run.id, "has no metric loss_train of its epochs")):
        arguments = ["--run", run_id, "--plots", str(tmp_path / "pictures")]
        assert run_step("training.tracking", lambda arguments=arguments: tracking.main(arguments)) == 1
        assert problem in capsys.readouterr().err


@OF_SQLALCHEMY
def test_a_failed_fit_leaves_a_failed_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sqlalchemy")
    with pytest.raises(ZeroDivisionError), tracking.started_run(tracking.local_uri(), "demo") as run:
        raise ZeroDivisionError
    client = tracking._client(tracking.local_uri())
    assert client.get_run(run.id).info.status == "FAILED"


def test_a_head_that_was_not_tracked_says_so(folder: Path, capsys) -> None:
    assert _fit() == 0
    assert run_step("training.tracking", lambda: tracking.main(["--recipe", "demo"])) == 1
    assert "was not tracked; fit it with --track" in capsys.readouterr().err


@pytest.mark.skipif(not MLFLOW.exists(), reason=NO_MLFLOW)
def test_a_server_keeps_the_run_and_serves_the_model(folder: Path, tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path / 'server.db'}"
    server_words = ["server", "--backend-store-uri", store, "--artifacts-destination", str(tmp_path / "kept")]
    with _mlflow(tmp_path, server_words, {}) as server:
        assert _fit("--track", server) == 0
        manifest = read_head(folder)
        run_id, uri = tracking.run_of(manifest)
        assert tracking._client(uri).get_run(run_id).info.status == "FINISHED"
        words = ["models", "serve", "-m", "models:/demo/1", "--env-manager", "local"]
        with _mlflow(tmp_path, words, {"MLFLOW_TRACKING_URI": server}) as scoring:
            body = json.dumps({"inputs": ROWS.tolist()}).encode()
            request = urllib.request.Request(f"{scoring}/invocations", body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=60) as reply:
                answers = json.load(reply)["predictions"]
    expected = _scores(manifest, folder)[:, 0]
    assert [row["score"]["round"] for row in answers] == pytest.approx(expected.tolist(), abs=1e-6)


@contextmanager
def _mlflow(tmp_path: Path, words: list[str], environment: dict[str, str]) -> Iterator[str]:
    """Run a server of mlflow's on a free port, and yield its URL once it is healthy."""
    with held_ports(0) as (port,):
        yield from _served(port, tmp_path, words, environment)


def _served(port: int, tmp_path: Path, words: list[str], environment: dict[str, str]) -> Iterator[str]:
    path = f"{MLFLOW.parent}{os.pathsep}{os.environ['PATH']}"
    log = tmp_path / f"{words[0]}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [str(MLFLOW), *words, "--host", "127.0.0.1", "--port", str(port)],
            cwd=tmp_path,
            env=os.environ | environment | {"PATH": path},
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        until(lambda: process.poll() is not None or _is_healthy(f"http://127.0.0.1:{port}"), pause_s=0.5)
        assert process.poll() is None, log.read_text()[-3000:]
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)


def _is_healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5):
            return True
    except OSError:
        return False
