"""The command line `clipsieve-bulk`: scores images on many machines with Ray.

Exit status: 0 everything was scored; 1 failure; 2 usage; 3 some images have no score; 5 server unavailable.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Annotated, NoReturn

import typer

from clipsieve.cli.grouped import GroupedCommand, grouped, option
from clipsieve.cli.options import SOME_FAILED, AllowVersionChange, InputOptions, RunOptions, ServerOptions, exits
from clipsieve.cli.score import HeadOptions
from clipsieve.cli.streams import run_command
from clipsieve.exceptions import ClipsieveError, OutputRefused, ServerUnavailable, VersionChanged
from clipsieve.inputs import Inputs
from clipsieve.passed_over import PassedOver
from clipsieve.progress import Reporter, Tally
from clipsieve.ray.job import check_installed, connected, outcomes, served_to_workers
from clipsieve.ray.part import Part, read_part
from clipsieve.ray.plan import Plan, delete_leftovers, planned, planned_for
from clipsieve.ray.storage import is_remote, joined, local_path
from clipsieve.ray.unit import Job, Outcome, Served, Servers

_JOB = "Job"
_FOOTERS_AT_ONCE = 16
_SEEN_WITHIN_S = 10.0
"""How long a file that another machine wrote to a shared folder may take to be seen here."""

Names = Annotated[
    list[str],
    typer.Argument(
        metavar="PATH",
        help="Images, folders, patterns such as 's3://bucket/photos/**/*.jpg', lists of paths (.csv, .parquet, "
        ".jsonl), or only WebDataset shards (.tar, .tar.gz); local, s3://, gs:// or any fsspec address. Local ones "
        "must be on a disk that all machines share.",
        show_default=False,
    ),
]


@dataclass
class ServersOptions(ServerOptions):
    """As for other commands; it is the workers that connect."""

    url: Annotated[
        str | None,
        option(
            "--url",
            "Addresses of the servers, with commas between them; they share the work, and when one goes away the "
            "others go on. Workers connect to them: localhost is each worker's own machine.",
            group="Server",
            metavar="HOST:PORT,...",
        ),
    ] = None

    def servers(self, run: RunOptions) -> Servers:
        ca_file = self.ca_file and self.ca_file.absolute()  # workers have another current folder
        return Servers.of(replace(self, ca_file=ca_file).client(**run.asking()))


@dataclass
class JobOptions:
    """Where the work is done and where it goes."""

    out: Annotated[
        str,
        option(
            "--out/-o",
            "Folder for the Parquet files, which all machines share, or an address such as s3://bucket/scores. A job "
            "that is started again leaves out the files that are there.",
            group=_JOB,
            metavar="FOLDER",
        ),
    ]
    address: Annotated[
        str | None,
        option(
            "--address",
            "The Ray cluster: auto on one of its machines, HOST:PORT or ray://HOST:PORT. By default what RAY_ADDRESS "
            "says or, without it, this machine alone.",
            group=_JOB,
            metavar="ADDRESS",
        ),
    ] = None
    workers: Annotated[
        int | None,
        option(
            "--workers",
            "How many score at once, each with --concurrency images in flight and one core. By default one for "
            "each machine.",
            group=_JOB,
            metavar="N",
            min=1,
        ),
    ] = None
    rows_per_file: Annotated[
        int,
        option(
            "--rows-per-file",
            "Images in one file, which is what is done again when a machine dies. A shard has a file of its own.",
            group=_JOB,
            metavar="N",
            min=1,
            show_default=True,
        ),
    ] = 5000
    allow_version_change: AllowVersionChange = False
    ray_log: Annotated[bool, option("--ray-log", "Show what Ray and its workers print.", group=_JOB)] = False


@grouped
def bulk(
    paths: Names, job: JobOptions, inputs: InputOptions, heads: HeadOptions, server: ServersOptions, run: RunOptions
) -> None:
    """Score images on many machines with Ray, into Parquet files with the columns of `clipsieve score`.

    An image that cannot be scored is a row with an error. A job that was killed goes on when it is started again.
    """
    reporter = run.reporter(to_file=True)
    with exits(reporter):
        check_installed()
        servers = server.servers(run)
        out = job.out if is_remote(job.out) else os.path.abspath(local_path(job.out))
        named = inputs.inputs(paths)
        plan = planned(out, named, job.rows_per_file, asdict(heads), run.overwrite)
        failed = _Bulk(plan, named, servers, heads, job, reporter).run()
    if failed:
        raise typer.Exit(SOME_FAILED)


@dataclass
class _Bulk:
    """One call of the command."""

    plan: Plan
    inputs: Inputs
    servers: Servers
    heads: HeadOptions
    options: JobOptions
    reporter: Reporter

    def run(self) -> int:
        """Score what is left; returns how many images, or shards, have no score."""
        kept = self._kept()
        is_whole = len(kept) == self.plan.units
        tally, damaged = (_tally_after(kept), 0) if is_whole else self._run_on_ray(kept)
        delete_leftovers(self.plan.out)
        summary = f"{tally.summary('scored')}; {self.plan.units - damaged} files in {self.plan.out}"
        passed_over = PassedOver(self.plan.passed_over)
        figures = tally.figures() | ({"passed_over": dict(passed_over)} if passed_over else {})
        self.reporter.tell(summary, "end", **figures, damaged_shards=damaged)
        if passed_over:
            self.reporter.tell(passed_over.summary(), "passed_over", counts=dict(passed_over))
        return tally.failed + damaged + sum(sum(part.failures.values()) for part in kept.values())

    def _run_on_ray(self, kept: dict[int, Part]) -> tuple[Tally, int]:
        """Score what is left; returns the tally of the images, and how many shards are damaged."""
        started = time.perf_counter()
        with connected(self.options.address, not self.options.ray_log) as nodes:
            job = self._job(is_new=not kept)
            self._check_same(job, kept)
            units = [unit for unit in range(self.plan.units) if unit not in kept]
            workers = min(self.options.workers or nodes, len(units))
            seconds = round(time.perf_counter() - started, 3)
            message = f"ready after {seconds:.1f} s: {nodes} nodes, {workers} workers, {len(units)} files to write"
            self.reporter.tell(message, "start", seconds=seconds, nodes=nodes, workers=workers, files=len(units))
            tally = _tally_after(kept)  # its clock begins here
            damaged = self._score(job, units, workers, tally)
        self._check_whole(job, self.plan.units - damaged)
        return tally, damaged

    def _job(self, is_new: bool) -> Job:
        served = self._served()
        for problem in served.silent:
            self.reporter.say(f"going on without a server: {problem}", "server")
        if is_new:
            options = self.options.rows_per_file, asdict(self.heads)
            self.plan = planned_for(served.formats, self.plan, self.inputs, *options)
        key = "key" if self.plan.of_shards else "image_path"
        columns = self.heads.columns(served.heads, key, self.reporter)
        return Job(self.plan, self.servers, columns, served.version, self.options.allow_version_change)

    def _served(self) -> Served:
        """Heads and versions of the servers; says so before it waits for one."""
        try:
            return self._ask(self.servers.waiting(0))
        except ServerUnavailable as error:
            if not self.servers.wait_s:
                raise
            self.reporter.say(f"{error}; waiting for a server up to {self.servers.wait_s:g} s", "server")
            return self._ask(self.servers)

    def _ask(self, servers: Servers) -> Served:
        return served_to_workers(servers, self.heads.head, self.options.allow_version_change)

    def _kept(self) -> dict[int, Part]:
        """The units whose file is there, whole and of this job."""
        parts = self.plan.parts_there()

        def read(part: str) -> Part | None:
            return read_part(joined(self.plan.out, part), self.plan.run_id)

        with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
            read_parts = zip(parts, pool.map(read, parts.values()), strict=True)
            return {unit: part for unit, part in read_parts if part is not None and self.plan.fits(unit, part.rows)}

    def _check_same(self, job: Job, parts: dict[int, Part]) -> None:
        """Refuse files that do not go together."""
        for part in parts.values():
            if part.columns != job.columns.names:
                raise OutputRefused(
                    f"the files in {self.plan.out} have the columns {', '.join(part.columns)}; this job would write "
                    f"{', '.join(job.columns.names)}; give --overwrite"
                )
        versions = {version for part in parts.values() for version in part.model_versions} | {job.version} - {None}
        if len(versions) > 1 and not self.options.allow_version_change:
            names = " and ".join(sorted(map(str, versions)))
            raise VersionChanged(
                f"the files in {self.plan.out} would be of more than one model version, {names}; give "
                "--allow-version-change to go on, or --overwrite to start anew"
            )

    def _check_whole(self, job: Job, count: int) -> None:
        """Look for every file in the folder, whatever the workers reported."""
        parts = self._kept()
        self._check_same(job, parts)
        if len(parts) != count:
            _fail(f"{count - len(parts)} files in {self.plan.out} vanished or were replaced; the same command goes on")

    def _score(self, job: Job, units: list[int], workers: int, tally: Tally) -> int:
        """Count the outcomes of the units; returns how many shards are damaged."""
        damaged = 0
        seen: set[str] = set()
        with self.reporter.watching(tally) as advance:
            for outcome in self._until_failure(outcomes(job, units, workers), tally):
                if outcome.part is None:
                    damaged += 1
                    self.reporter.say(f"clipsieve: {outcome.message}", "error")
                    continue
                if outcome.message:
                    self.reporter.tell(outcome.message, "shard")
                if outcome.node not in seen:
                    self._check_visible(outcome)
                    seen.add(outcome.node)
                tally.done += outcome.part.rows
                tally.failures.update(outcome.part.failures)
                advance()
        return damaged

    def _until_failure(self, outcomes: Iterator[Outcome], tally: Tally) -> Iterator[Outcome]:
        """The outcomes, up to one that ends the job; says then what is kept."""
        try:
            for outcome in outcomes:
                if outcome.status == "failed":
                    _fail(outcome.message)
                yield outcome
        except BaseException:
            rows = tally.kept + tally.done
            self.reporter.say(f"not finished: {rows} rows are in {self.plan.out}; the same command goes on", "kept")
            raise

    def _check_visible(self, outcome: Outcome) -> None:
        """Refuse a node that writes to its own disk instead of a shared one: its files would be lost to the others."""
        path = os.path.join(self.plan.out, self.plan.part(outcome.unit))
        until = time.monotonic() + _SEEN_WITHIN_S
        while not is_remote(self.plan.out) and not os.path.exists(path):
            if time.monotonic() > until:
                _fail(f"{path} was written on another machine, node {outcome.node}; --out must be shared by all")
            time.sleep(0.2)


def _tally_after(kept: dict[int, Part]) -> Tally:
    return Tally(sum(part.rows for part in kept.values()))


def _fail(message: str) -> NoReturn:
    raise ClipsieveError(message)


app = typer.Typer(
    name="clipsieve-bulk",
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
app.command(
    cls=GroupedCommand,
    epilog="Exit status: 0 all scored, 1 failure, 2 usage, 3 some images have no score, 5 server unavailable. "
    "Every option has a variable in the environment: --url is CLIPSIEVE_URL.",
)(bulk)


def main() -> None:
    run_command("clipsieve-bulk", app)


if __name__ == "__main__":
    main()
