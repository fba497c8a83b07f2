"""Runs the real tritonserver on this machine, without a container, on loopback.

    python -m serving.embedded --recipe demo

Starts the server of the wheel nvidia-pytriton with the python-based `onnxruntime` backend, waits
until a real inference succeeds, prints the URLs, restarts the server when it no longer works, and stops
cleanly on SIGINT, SIGTERM or SIGHUP; if it is killed, the server stops too. For development, tests and
small CPU deployments; its release (2.51) is older than the security fixes of 2025 and 2026, so it stays
on loopback.

With CLIPSIEVE_ADMIN_KEY in the environment and --control explicit, `python -m serving.rollout` can
replace a head while it serves.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
from pathlib import Path
from typing import NoReturn

from common.instances import Processors, other_machine_note
from common.paths import ARTIFACTS, repository_folder
from common.recipe_record import differences
from recipes.arguments import add_recipe_options, recipe_of
from recipes.errors import run_step
from recipes.schema import Recipe
from serving.supervisor import Pace, Supervisor, ending
from serving.triton_wheel import ServingError
from serving.tritonserver import EmbeddedServer, ServerSettings, free_ports
from serving.tritonserver_options import admin_key_from_environment

__all__ = ["EmbeddedServer", "ServerSettings", "free_ports", "main", "refuse_plans"]

CURL_SED = 's/.*/{"image":"&"}/'


_ENSEMBLE = 'platform: "ensemble"'
_MODEL_SUFFIXES = (".onnx", ".plan", ".py")
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that stop the server in order; the last comes when the terminal is closed."""


def main(argv: list[str] | None = None) -> None:
    arguments = parser().parse_args(argv)
    refuse_equal_ports(arguments)
    for number in _STOPPING:
        signal.signal(number, _raise_stop)
    try:
        recipe = recipe_of(arguments)
        repository = arguments.repository or repository_folder(recipe)
        refuse_unbuilt(repository, recipe.name)
        refuse_plans(repository)
        if arguments.repository is None:
            compare_with_build(repository, recipe, arguments.overrides)
        if note := other_machine_note(repository, Processors.of_this_machine()):
            print(f"serving.embedded: {note}", file=sys.stderr)
        with embedded_server(arguments, repository) as server:
            print(welcome(server, recipe.name, recipe.notice), file=sys.stderr, flush=True)
            if arguments.json:
                print(json.dumps(addresses(server)), flush=True)
            keep_serving(server, arguments)
    except _Stop:
        return


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m serving.embedded", description=(__doc__ or "").splitlines()[0])
    add_recipe_options(parser)
    parser.add_argument("--repository", type=Path, help="a model repository other than the recipe's own")
    parser.add_argument("--http-port", type=int, default=8000)
    parser.add_argument("--grpc-port", type=int, default=8001)
    parser.add_argument("--metrics-port", type=int, default=8002)
    parser.add_argument("--json", action="store_true", help="print the addresses on stdout, once it serves")
    parser.add_argument("--log", type=Path, default=ARTIFACTS / "tritonserver.log", help="the server's log")
    parser.add_argument("--no-restart", action="store_true", help="end when the server ends; watch nothing else")
    parser.add_argument("--probe-interval", type=float, default=Pace.interval_s, metavar="SECONDS")
    parser.add_argument("--probe-deadline", type=float, default=Pace.deadline_s, metavar="SECONDS")
    parser.add_argument(
        "--control",
        choices=("none", "explicit"),
        default="none",
        help="explicit: python -m serving.rollout may replace heads; needs CLIPSIEVE_ADMIN_KEY",
    )
    parser.add_argument("--tracing", metavar="URL", help="OTLP/HTTP collector, e.g. http://localhost:4318/v1/traces")
    return parser


def embedded_server(arguments: argparse.Namespace, repository: Path) -> EmbeddedServer:
    return EmbeddedServer(
        repository,
        ServerSettings(
            http_port=arguments.http_port,
            grpc_port=arguments.grpc_port,
            metrics_port=arguments.metrics_port,
            log_path=arguments.log,
            control=arguments.control,
            admin_key=admin_key_from_environment(),
            tracing_url=arguments.tracing,
            stops_with_us=True,
        ),
    )


def keep_serving(server: EmbeddedServer, arguments: argparse.Namespace) -> NoReturn:
    """Wait for a signal while the server runs.

    Raises:
        ServingError: the server ended, or was restarted too often.
    """
    if not arguments.no_restart:
        Supervisor(server, Pace(interval_s=arguments.probe_interval, deadline_s=arguments.probe_deadline)).run()
    status = server.wait() or 0
    raise ServingError(f"tritonserver ended {ending(status)}; end of its log:\n{server.log_tail()}")


def refuse_equal_ports(arguments: argparse.Namespace) -> None:
    """Refuse one port for two protocols, before Triton prints all its options.

    Raises:
        ServingError: names the port.
    """
    ports = [arguments.http_port, arguments.grpc_port, arguments.metrics_port]
    for port in ports:
        if port and ports.count(port) > 1:
            raise ServingError(f"port {port} is given twice: HTTP, gRPC and metrics want one each")


def refuse_unbuilt(repository: Path, recipe_name: str) -> None:
    """Refuse a repository that is not there, or whose models have no files yet, before Triton says so at length.

    Raises:
        ServingError: names the models, and the command that builds them.
    """
    if not repository.is_dir():
        raise ServingError(f"{repository}: no model repository; build it with: make engines RECIPE={recipe_name}")
    configs = repository.glob("*/config.pbtxt")
    unbuilt = sorted(
        config.parent.name
        for config in configs
        if _ENSEMBLE not in config.read_text(encoding="utf-8")
        and not any(file.suffix in _MODEL_SUFFIXES for file in config.parent.glob("*/*"))
    )
    if unbuilt:
        raise ServingError(
            f"{repository}: {', '.join(unbuilt)} {'is' if len(unbuilt) == 1 else 'are'} not built; build with: "
            f"make engines RECIPE={recipe_name}"
        )


def compare_with_build(repository: Path, recipe: Recipe, overrides: list[str]) -> None:
    """Say what the recipe says otherwise than when its repository was built, which is what is served.

    Raises:
        ServingError: there are such values, and some of the command line, which would have no effect.
    """
    changed = differences(repository, recipe)
    if not changed:
        return
    shown = "; ".join([*map(str, changed[:5]), *(["…"] if changed[5:] else [])])
    values = f" SET={shlex.quote(' '.join(overrides))}" if overrides else ""
    remedy = f"{repository} was built with {shown}; build it anew: make engines RECIPE={recipe.name}{values}"
    if overrides:
        raise ServingError(f"--set changes nothing of what is built: {remedy}")
    print(f"note: {remedy}", file=sys.stderr, flush=True)


def refuse_plans(repository: Path) -> None:
    """The wheel has no TensorRT backend; say so before Triton says it at length."""
    if plans := list(repository.glob("*/1/*.plan")):
        raise ServingError(f"{plans[0]}: the embedded server cannot run a TensorRT plan; run: make engines TARGET=onnx")


class _Stop(BaseException):
    """One of the signals that stop the server arrived."""


def _raise_stop(number: int, frame: object) -> None:
    for again in _STOPPING:
        signal.signal(again, signal.SIG_IGN)  # stopping is under way; a second Ctrl-C must not leave processes
    print("stopping: requests in flight are finished first", file=sys.stderr, flush=True)
    raise _Stop


def addresses(server: EmbeddedServer) -> dict[str, str]:
    return {"grpc": server.grpc_url, "http": server.http_url, "metrics": server.metrics_url}


def welcome(server: EmbeddedServer, recipe_name: str, notice: str | None) -> str:
    return "\n".join(
        [
            f"serving {recipe_name} (log: {server.log_path}); Ctrl-C stops it",
            *([notice] if notice else []),
            f"  gRPC     {server.grpc_url}",
            f"  HTTP     http://{server.http_url}",
            f"  metrics  {server.metrics_url}",
            "score a folder:",
            f"  clipsieve score PHOTOS --url {server.grpc_url}",
            "score one file with curl:",
            "  base64 -w0 photo.jpg | sed '"
            + CURL_SED
            + f"' | curl -H 'Content-Type: application/json' -d @- http://{server.http_url}/v2/models/image_score/generate",
        ]
    )


if __name__ == "__main__":
    sys.exit(run_step("serving.embedded", main))
