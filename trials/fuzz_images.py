"""Damaged image files through the served preprocessing: what it answers, how long it takes, who disagrees.

    python -m trials.fuzz_images --count 60000 --out artifacts/fuzz          # the transform, in processes
    python -m trials.fuzz_images --count 6000 --out artifacts/fuzz --server  # and the demo's server over gRPC

Each file follows from its index and the seed (`trials.image_mutations`). The transform runs in processes
whose memory is limited and whose silence is noticed; what it takes is shown to an independent decoder
(`trials.reference_decoders`). A row for each file goes to OUT/rows-<seed>.jsonl, and a run that is started
again goes on where it stopped; files that somebody should look at are kept in OUT. Prints a table and one
JSON line; status 1 when anything crashed, hung, or answered with an unknown code.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import psutil

from benchmarks.machine import Machine, machine, print_result
from clipsieve import Client
from common.model_config import read_config
from common.paths import repository_folder
from common.pixels import served_module
from recipes.schema import load_recipe
from recipes.serving_section import Serving
from serving.embedded import EmbeddedServer, ServerSettings
from trials.image_mutations import FORMATS, mutant
from trials.reference_decoders import COMMANDS, missing, verdicts

CODES = {
    "OK", "EMPTY", "TOO_MANY_BYTES", "BAD_BASE64", "NOT_AN_IMAGE", "TOO_MANY_PIXELS", "TOO_ELONGATED",
    "TOO_MANY_FRAMES", "TOO_MANY_SCANS", "TOO_MANY_PARTS", "DECODE_FAILED",
}  # fmt: skip
BLOCK = 200
"""Files of one task of a process: what is lost, and looked for one by one, when it dies."""
BLOCK_TIMEOUT_S = 300


def transform():
    """Transform with every decoder and the default limits; `transform(data)` → (224, 224, 3) uint8."""
    module, serving = served_module(), Serving()
    view = module.View(224, "shortest", "bicubic")
    limits = {name: getattr(serving, name) for name in ("max_bytes", "max_pixels", "max_frames", "max_scans")}
    return module.Transform(views=(view,), formats=FORMATS, **limits)


def transform_of(repository: Path):
    """Transform as the server of this model repository does it."""
    parameters = read_config(repository / "preprocess" / "config.pbtxt").parameters
    return served_module().Transform.from_parameters({key: parameters[key].string_value for key in parameters})


def answer(data: bytes, transform) -> str:
    """The code: OK for pixels."""
    try:
        transform(data)
    except served_module().ImageError as error:
        return error.code
    return "OK"


def block_rows(seed: int, indices: list[int], memory_bytes: int, with_reference: bool) -> list[dict]:
    """A row per file; runs in a process of its own."""
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    decode = transform()
    with tempfile.TemporaryDirectory(prefix="clipsieve-fuzz-") as folder:
        path = Path(folder) / "image"
        return [_row(seed, index, decode, path if with_reference else None) for index in indices]


def _row(seed: int, index: int, decode, path: Path | None) -> dict:
    made = mutant(index, seed)
    started = time.perf_counter()
    code = answer(made.data, decode)
    row = {"index": index, "format": made.format, "mutation": made.mutation, "code": code}
    row |= {"ms": round(1000 * (time.perf_counter() - started), 2), "bytes": len(made.data)}
    if path is not None and code == "OK":
        path.write_bytes(made.data)
        opinions = verdicts(made.format, str(path))
        row["refused_by"] = {opinion.program: opinion.words for opinion in opinions if opinion.refuses}
    return row


def blocks(count: int, done: set[int]) -> Iterator[list[int]]:
    for start in range(0, count, BLOCK):
        indices = [index for index in range(start, min(start + BLOCK, count)) if index not in done]
        if indices:
            yield indices


def fuzz(arguments: argparse.Namespace, done: set[int]) -> Iterator[dict]:
    """Rows as they come. A block whose process dies or hangs is tried again file by file."""
    options = (arguments.memory_mib * 2**20, not arguments.no_reference)
    todo = list(blocks(arguments.count, done))
    while todo:
        with concurrent.futures.ProcessPoolExecutor(arguments.workers) as pool:
            batch, todo = todo[: arguments.workers * 10], todo[arguments.workers * 10 :]
            futures = {pool.submit(block_rows, arguments.seed, indices, *options): indices for indices in batch}
            for future, indices in futures.items():
                try:
                    yield from future.result(BLOCK_TIMEOUT_S)
                except (BrokenProcessPool, TimeoutError) as error:
                    if len(indices) == 1:
                        made = mutant(indices[0], arguments.seed)
                        yield {"index": indices[0], "format": made.format, "code": type(error).__name__}
                    else:
                        todo += [[index] for index in indices]
                    _end(pool)


def _end(pool: concurrent.futures.ProcessPoolExecutor) -> None:
    for process in list((pool._processes or {}).values()):  # the pool has no way to end a process that hangs
        process.kill()


def serve(arguments: argparse.Namespace) -> list[dict]:
    """The same files to a real server: an answer each, the same as the transform's, from processes that live on."""
    repository = arguments.repository or repository_folder(load_recipe("demo"))
    decode = transform_of(repository)
    ports = dict.fromkeys(("http_port", "grpc_port", "metrics_port"), 0)
    with EmbeddedServer(repository, ServerSettings(log_path=arguments.out / "tritonserver.log", **ports)) as server:
        before, rows = stub_pids(), []
        with Client(server.grpc_url, concurrency=16) as client:
            for start in range(0, arguments.count, BLOCK):
                indices = range(start, min(start + BLOCK, arguments.count))
                rows += served_rows(client, decode, arguments.seed, indices)
                show_progress(len(rows), arguments.count)
            if not client.health().ok or stub_pids() != before:
                raise SystemExit("fuzz_images: the server or one of its Python processes died")
    return rows


def served_rows(client: Client, decode, seed: int, indices: Iterable[int]) -> list[dict]:
    made = [mutant(index, seed) for index in indices]
    codes = [result.error.code if result.error else "OK" for result in client.score([one.data for one in made])]
    return [
        {"index": index, "format": one.format, "served": code, "code": answer(one.data, decode)}
        for index, one, code in zip(indices, made, codes, strict=True)
    ]


def stub_pids() -> set[int]:
    children = psutil.Process().children(recursive=True)
    return {child.pid for child in children if "triton" in child.name()}


def show_progress(done: int, count: int) -> None:
    if done % (10 * BLOCK) == 0 or done == count:
        print(f"{done:,} of {count:,} files", file=sys.stderr, flush=True)


def read_rows(path: Path) -> list[dict]:
    """Rows of a run that was stopped; a last line that was cut off is left out."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def keep(rows: Iterable[dict], arguments: argparse.Namespace) -> None:
    """The files whose rows are worth a look: answers nobody knows, slow ones, disagreements with the reference."""
    for row in rows:
        if row["code"] not in CODES or row.get("ms", 0) > arguments.slow_ms or disagrees(row):
            folder = arguments.out / "kept" / row["format"]
            folder.mkdir(parents=True, exist_ok=True)
            data = mutant(row["index"], arguments.seed).data
            (folder / f"{arguments.seed}-{row['index']}").write_bytes(data)


def disagrees(row: dict) -> bool:
    return row["format"] in COMMANDS and COMMANDS[row["format"]][0] in row.get("refused_by", {})


def report(rows: list[dict], arguments: argparse.Namespace, hardware: Machine) -> int:
    codes = {name: collections.Counter(row["code"] for row in rows if row["format"] == name) for name in FORMATS}
    for name, counts in codes.items():
        slowest = max((row.get("ms", 0) for row in rows if row["format"] == name), default=0)
        code_counts = "  ".join(f"{code} {count:,}" for code, count in counts.most_common())
        print(f"{name:5} {sum(counts.values()):7,} files, slowest {slowest:7.1f} ms: {code_counts}")
    against = collections.Counter(
        (row["format"], program, words) for row in rows for program, words in row.get("refused_by", {}).items()
    )
    for (name, program, words), count in against.most_common():
        print(f"  taken here, refused by {program}: {count:5,} {name}: {words}")
    unknown = [row["index"] for row in rows if row["code"] not in CODES]
    summary = {"seed": arguments.seed, "files": len(rows), "codes": codes}
    summary |= {"unknown": unknown, "refused_by_reference": sum(map(disagrees, rows)), "no_reference": missing()}
    print_result("trials.fuzz_images", hardware, **summary)
    return 1 if unknown else 0


def report_served(rows: list[dict], hardware: Machine) -> int:
    differing = [row for row in rows if row["served"] != row["code"]]
    print(f"{len(rows):,} files through the server, {sum(row['served'] == 'OK' for row in rows):,} scored")
    print_result("trials.fuzz_images", hardware, server=True, files=len(rows), differing=differing[:20])
    return 1 if differing else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m trials.fuzz_images")
    parser.add_argument("--count", type=int, default=60_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder of rows, and of files worth a look")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--memory-mib", type=int, default=4096, help="address space of a process (default %(default)s)")
    parser.add_argument("--slow-ms", type=float, default=2000, help="keep files that take longer (default %(default)s)")
    parser.add_argument("--no-reference", action="store_true", help="ask no other decoder")
    parser.add_argument("--server", action="store_true", help="send the files to the demo's server as well")
    parser.add_argument("--repository", type=Path, help="of the server (default: the demo's)")
    arguments, hardware = parser.parse_args(), machine()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.server:
        return report_served(serve(arguments), hardware)
    transform()  # loaded once, before the processes start
    path = arguments.out / f"rows-{arguments.seed}.jsonl"
    rows = read_rows(path)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
        for row in fuzz(arguments, {row["index"] for row in rows}):
            rows.append(row)
            file.write(json.dumps(row) + "\n")
            show_progress(len(rows), arguments.count)
    keep(rows, arguments)
    return report(rows, arguments, hardware)


if __name__ == "__main__":
    sys.exit(main())
