"""Records a fit with MLflow: parameters, metrics per epoch, plots, artefacts, git commit; registers the head.

    python -m training.fit --recipe demo --track                           # into artifacts/mlflow/
    python -m training.fit --recipe demo --track http://127.0.0.1:5000     # or MLFLOW_TRACKING_URI, to a server

The run's id stands in head.json (`training.mlflow_run_id`); from head.json alone the run is found again:

    python -m training.tracking --recipe demo                        # prints the run as JSON
    python -m training.tracking --recipe demo --plots pictures       # and writes its pictures
    python -m training.tracking --run 7c1f… --plots pictures         # of any run, such as a fine-tuning's

The registered model `<head>` answers embedding rows with score and decision. `mlflow models serve` belongs to the
full mlflow, which does not install beside this project (it wants pyarrow below 26), and to an environment of its own:

    make mlflow
    export MLFLOW_TRACKING_URI=http://127.0.0.1:5000
    PATH=$PWD/.mlflow/bin:$PATH mlflow models serve -m models:/demo/1 --env-manager local    # starts uvicorn from PATH
    curl 127.0.0.1:5000/invocations -H 'Content-Type: application/json' -d '{"inputs": [[0.1, …]]}'

What is needed here is the extra `tracking`: mlflow-skinny, with sqlalchemy and alembic for a run kept locally.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from common import paths
from common.manifest import HeadManifest, read_head
from recipes.arguments import add_recipe_options, recipe_of
from recipes.errors import run_step
from recipes.head_section import Head
from training import mlflow_model
from training.errors import INTERRUPTED, StepError
from training.losses import Curve
from training.tracked_run import figures_of, write_pictures

EXPERIMENT = "clipsieve"
_NEEDED_TO_SERVE = ["mlflow", "numpy", "safetensors"]


class Run:
    """One run that has been started. Leaves the run `FINISHED`, or `FAILED` when it could not be completed."""

    def __init__(self, client: Any, run_id: str) -> None:
        self._client = client
        self.id = run_id

    def log_fit(self, head: Head, metrics: dict[str, Any], curve: Curve, tags: dict[str, str]) -> None:
        """Settings as parameters, losses per epoch and the figures of the test split as metrics."""
        self.log_figures(flat_params(head), metrics, curve, tags)

    def log_figures(self, params: dict[str, str], metrics: dict[str, Any], curve: Curve, tags: dict[str, str]) -> None:
        """Parameters, the course of each epoch, and figures."""
        from mlflow.entities import Metric, Param, RunTag

        now = int(time.time() * 1000)
        losses = [
            Metric(name, value, now, epoch)
            for name, values in curve.series().items()
            for epoch, value in enumerate(values)
        ]
        figures = [Metric(name, value, now, curve.best_epoch) for name, value in flat_metrics(metrics).items()]
        every = losses + figures
        for at in range(0, len(every), 1000):  # the most that a server takes at once
            self._client.log_batch(self.id, metrics=every[at : at + 1000])
        named = [Param(name, value) for name, value in params.items()]
        self._client.log_batch(self.id, params=named[:100], tags=[RunTag(*pair) for pair in tags.items()])

    def log_files(self, folder: Path, place: str) -> None:
        """Keep the files of a folder under a name of the run's artefacts."""
        self._client.log_artifacts(self.id, str(folder), place)

    def log_head(self, folder: Path, name: str) -> str:
        """Keep the head's files and register it as the model `name`; returns the version."""
        self._client.log_artifacts(self.id, str(folder), "head")
        with tempfile.TemporaryDirectory() as temporary:
            write_model(Path(temporary), folder, self.id)
            self._client.log_artifacts(self.id, temporary, "model")
        source = f"{self._client.get_run(self.id).info.artifact_uri}/model"
        with contextlib.suppress(_mlflow_error()):  # it is registered already
            self._client.create_registered_model(name)
        return str(self._client.create_model_version(name, source, self.id).version)


@contextlib.contextmanager
def started_run(uri: str, head_name: str) -> Iterator[Run]:
    """A run on a tracking server or in a local database.

    Raises:
        StepError: the package is missing, or the server does not take it.
    """
    client = _client(uri)
    try:
        run = Run(client, client.create_run(_experiment(client, uri), run_name=head_name).info.run_id)
        yield run
    except BaseException as error:
        with contextlib.suppress(Exception):
            client.set_terminated(run.id, "FAILED")  # type: ignore[possibly-undefined]
        if isinstance(error, _mlflow_error()):
            raise StepError(f"MLflow at {uri} does not take the run: {str(error)[:300]}") from error
        raise
    client.set_terminated(run.id, "FINISHED")


def add_track_option(parser: argparse.ArgumentParser) -> None:
    """Add --track: where a run is recorded, see `tracking_uri`."""
    parser.add_argument(
        "--track",
        nargs="?",
        const="",
        metavar="URI",
        help="record the run with MLflow; by default in MLFLOW_TRACKING_URI, else in artifacts/mlflow",
    )


def tracking_uri(uri: str | None) -> str | None:
    """Return where to track: None is nowhere, an empty text the default place, any other a URI."""
    from_environment = os.environ.get("MLFLOW_TRACKING_URI") or None
    return (uri or from_environment or local_uri()) if uri is not None else from_environment


def local_uri() -> str:
    return f"sqlite:///{(paths.ARTIFACTS / 'mlflow' / 'mlflow.db').absolute()}"


def git_commit(folder: Path = paths.ROOT) -> str | None:
    """The commit that is checked out, `-dirty` when files differ from it; None outside a checkout."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        commit, changes = (
            subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
        return f"{commit}-dirty" if changes else commit
    return None


def write_model(target: Path, head_folder: Path, run_id: str) -> None:
    """An MLflow model folder: MLmodel, data/ with the head, code/ with what loads it."""
    (target / "data").mkdir(parents=True)
    (target / "code").mkdir()
    for name in ("head.json", "head.safetensors"):
        shutil.copyfile(head_folder / name, target / "data" / name)
    shutil.copyfile(str(mlflow_model.__file__), target / "code" / "clipsieve_head.py")
    flavor = {
        "loader_module": "clipsieve_head",
        "data": "data",
        "code": "code",
        "env": {"virtualenv": "python_env.yaml"},
    }
    model = {"run_id": run_id, "artifact_path": "model", "flavors": {"python_function": flavor}}
    (target / "MLmodel").write_text(yaml.safe_dump(model))
    (target / "requirements.txt").write_text("\n".join(_NEEDED_TO_SERVE) + "\n")
    python = ".".join(map(str, sys.version_info[:3]))
    environment = {"python": python, "dependencies": ["-r requirements.txt"]}
    (target / "python_env.yaml").write_text(yaml.safe_dump(environment))


def flat_metrics(metrics: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Every number by its path, as MLflow names metrics: `macro/auroc`; intervals as `…_low` and `…_high`."""
    flat: dict[str, float] = {}
    for key, value in metrics.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            flat |= flat_metrics(value, f"{name}/")
        elif isinstance(value, (int, float)):
            flat[name] = float(value)
        elif key.endswith("_95_interval") and value is not None:
            flat |= {f"{name}_low": value[0], f"{name}_high": value[1]}
    return flat


def flat_params(head: Head) -> dict[str, str]:
    """The recipe's entry, a line for each setting."""
    settings = head.settings()
    fit = {f"fit.{key}": value for key, value in settings.pop("fit").items()}
    return {key: str(value)[:500] for key, value in (settings | fit).items() if value is not None}


def _client(uri: str) -> Any:
    try:
        from mlflow import MlflowClient
    except ImportError as error:
        raise _extra_is_missing() from error
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # by default minutes pass before an error
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    try:
        return MlflowClient(tracking_uri=uri, registry_uri=uri)
    except ImportError as error:
        raise _extra_is_missing() from error
    except _mlflow_error() as error:
        raise StepError(f"MLflow cannot track to {uri}: {str(error)[:300]}") from error


def _extra_is_missing() -> StepError:
    return StepError("tracking needs the extra `tracking`: uv sync --group tracking, or leave --track out")


def _experiment(client: Any, uri: str) -> str:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is not None:
        return experiment.experiment_id
    location = (paths.ARTIFACTS / "mlflow" / "runs").absolute().as_uri() if uri.startswith("sqlite:") else None
    return client.create_experiment(EXPERIMENT, artifact_location=location)


def _mlflow_error() -> type[Exception]:
    from mlflow.exceptions import MlflowException

    return MlflowException


def run_of(manifest: HeadManifest) -> tuple[str, str]:
    """The id of the run that a head was fitted in, and MLflow's address.

    Raises:
        StepError: it was not tracked.
    """
    run_id, uri = manifest.training.mlflow_run_id, manifest.training.mlflow_tracking_uri or ""
    if run_id is None:
        raise StepError(f"head {manifest.name} was not tracked; fit it with --track")
    return run_id, tracking_uri(uri if uri != "local" else "") or local_uri()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m training.tracking", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    add_recipe_options(parser, group=what, help="whose head was fitted in the run")
    what.add_argument("--run", metavar="ID", help="of a run in MLFLOW_TRACKING_URI, else in artifacts/mlflow")
    parser.add_argument("--head", help="needed if the recipe has several heads")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="where to write the run's pictures")
    arguments = parser.parse_args(argv)
    if arguments.run is not None:
        run_id, uri = arguments.run, tracking_uri("") or local_uri()
    else:
        recipe = recipe_of(arguments)
        run_id, uri = run_of(read_head(paths.head_folder(recipe, recipe.head(arguments.head))))
    client = _client(uri)
    try:
        figures = figures_of(client.get_run(run_id))
        pictures = [] if arguments.plots is None else write_pictures(client, run_id, arguments.plots)
    except _mlflow_error() as error:
        raise StepError(f"MLflow at {uri} does not have run {run_id}: {str(error)[:300]}") from error
    for path in pictures:
        print(path, file=sys.stderr)
    print(json.dumps(figures))


if __name__ == "__main__":
    sys.exit(run_step("training.tracking", main, INTERRUPTED))
