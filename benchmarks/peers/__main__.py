"""clipsieve beside the limit of the machine and what people would use instead, in one run.

    make train RECIPE=benchmarks/peers/vit-b-32.yaml DATA=PHOTOS    # any two labelled folders: angular/ and round/
    make train RECIPE=benchmarks/peers/vit-b-16.yaml DATA=PHOTOS
    python -m benchmarks.peers --install                            # the peers' environments, into .peers/
    python -m benchmarks.peers --rounds 5

All get the same JPEG files and the same ViT-B/32 with seeded random weights, and must answer rightly before they are
timed; transformers' image-classification pipeline and two rows of ours have a ViT-B/16 instead, the same for all. The
limit is one process without a server: the served decoding and onnxruntime at the best of a few batch sizes and layouts.
Servers get one image a request from the same generator, at the best of a few concurrencies (FastAPI, LitServe, MLflow
and the pipeline also with the best number of workers). While one is measured all processes of the others are stopped
(SIGSTOP); then it goes on, and does uncounted work first. Rounds are interleaved; told are medians, ratios of one
round with their spread, and the p99 of all rounds' answers at an equal offered load: 80 % of what the slowest carries.
CPU and memory are the peer's own, cores busy those of the machine. clip-retrieval reads a folder: its own count of its
loop is taken, without its start. A peer that cannot be installed or started is listed with the reason, and nothing is
downloaded but packages, with --install. Interrupted (Ctrl-C, SIGTERM, SIGHUP) it lets all go on and ends them.
Prints tables and one JSON line.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path

from benchmarks.machine import hardware_line, machine, print_result
from benchmarks.peers.environments import ENVIRONMENTS, PeerError, install
from common.paths import ARTIFACTS, ROOT
from recipes.arguments import add_recipe_options, recipe_of
from recipes.errors import run_step
from recipes.schema import load_recipe

RECIPE = "benchmarks/peers/vit-b-32.yaml"
CLASSIFIER = "benchmarks/peers/vit-b-16.yaml"
WITHOUT_SERVER = ("limit", "clip-retrieval")
OURS = ("clipsieve fp32", "clipsieve fp32 throughput", "clipsieve int8", "clipsieve gateway")
CLASSIFIERS = ("clipsieve ViT-B/16", "clipsieve ViT-B/16 throughput", "transformers ViT-B/16")
SERVICES = (*OURS, "FastAPI", "MLflow", "LitServe", "infinity", *CLASSIFIERS)
ENVIRONMENT_OF = {
    "FastAPI": "fastapi",
    "MLflow": "mlflow",
    "LitServe": "litserve",
    "infinity": "infinity",
    "clip-retrieval": "clip-retrieval",
    "transformers ViT-B/16": "transformers",
}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--install", action="store_true", help="make the peers' environments, and end")
    add_recipe_options(parser, default=str(ROOT / RECIPE), help="built; with random weights and a linear head")
    names = (*WITHOUT_SERVER, *SERVICES)
    parser.add_argument("--only", nargs="+", metavar="PEER", choices=names, help=f"of {', '.join(names)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5, help="of each measurement (default %(default)s)")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 2, 4, 8, 16], help="that are tried")
    parser.add_argument("--alone", type=int, metavar="PICTURES", help="scored one by one in each round (default: all)")
    return parser.parse_args(argv)


def install_all(names: list[str] | None) -> int:
    """Install the environments of the named peers, or of all; failures are printed."""
    chosen = {ENVIRONMENT_OF[name] for name in names or ENVIRONMENT_OF if name in ENVIRONMENT_OF}
    for environment in ENVIRONMENTS.values():
        if environment.name in chosen:
            problem = install(environment)
            state = f"could not be installed: {problem}" if problem else f"installed, {environment.version()}"
            print(f"peers: {environment.name} {state}", file=sys.stderr, flush=True)
    return 0


def versions_of_peers() -> dict[str, str]:
    """Versions of the installed peers, by name."""
    result = {}
    for name, environment in ENVIRONMENT_OF.items():
        try:
            ENVIRONMENTS[environment].check()
        except PeerError:
            continue
        result[name] = ENVIRONMENTS[environment].version()
    return result


def contest(arguments: argparse.Namespace, folder: Path) -> int:
    from benchmarks.peers.contest import Contest, Settings
    from benchmarks.peers.figures import as_json, comparisons, figures_of, paired_ratios
    from benchmarks.peers.material import prepare
    from benchmarks.peers.servers import services
    from benchmarks.results.views import terminal_text

    chosen = arguments.only or [*WITHOUT_SERVER, *SERVICES]
    recipe, hardware = recipe_of(arguments), machine()
    material = classifier = prepare(recipe, ARTIFACTS / "peers" / recipe.encoder.id)
    if not set(CLASSIFIERS).isdisjoint(chosen):
        other = load_recipe(ROOT / CLASSIFIER)
        classifier = prepare(other, ARTIFACTS / "peers" / other.encoder.id)
    settings = Settings(arguments.seconds, arguments.rounds, tuple(arguments.concurrency), arguments.alone)
    with Contest(material, folder, settings) as running:
        if "limit" in chosen:
            running.add_limit()
        for service in services(material, classifier):
            if service.name in chosen:
                running.add_service(service)
        if "clip-retrieval" in chosen:
            running.add_folder_command("clip-retrieval")
        running.run_rounds()
    for name, version in versions_of_peers().items():
        if name in running.rows:
            running.rows[name].version = version
    figures, compared = [figures_of(row) for row in running.rows.values()], comparisons(running.rows)
    print(f"{hardware_line(hardware)}; {len(material.pictures)} pictures of mixed size")
    how = {"rounds": settings.rounds, "seconds": settings.seconds, "encoder": recipe.encoder.id, "idle": "stopped"}
    result = how | as_json(figures, compared, paired_ratios(running.rows))
    print(terminal_text({"benchmark": "peers"} | result))
    print_result("benchmarks.peers", hardware, **result)
    return 0


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    if arguments.install:
        return install_all(arguments.only)
    for number in (signal.SIGTERM, signal.SIGHUP):  # so that no peer stays stopped, and all are ended
        signal.signal(number, lambda caught, _: sys.exit(128 + caught))
    with tempfile.TemporaryDirectory(prefix="clipsieve-peers-") as folder:
        return contest(arguments, Path(folder))


if __name__ == "__main__":
    sys.exit(run_step("benchmarks.peers", main))
