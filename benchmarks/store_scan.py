"""How much memory and time a pass over a million stored embeddings takes.

    python -m benchmarks.store_scan                       # 1,000,000 × 768 float16, about 1.6 GB of temporary disk
    python -m benchmarks.store_scan --rows 100000

Writes a store of random unit vectors, then reads it in processes of their own: `scan` sums every embedding in
batches, `open` opens the store to add rows, `names` resolves what the store says now without its embeddings,
`read` loads it as training.fit does. Prints for each its seconds and peak resident memory in MiB (Linux only),
and one JSON line.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.machine import machine, print_result
from common.manifest import EncoderFingerprint
from common.paths import ROOT
from training.store import Row, Store, fingerprint_of, part_files, read_embeddings, read_names, scan_embeddings


def write_store(folder: Path, rows: int, embed_dim: int) -> None:
    """A store of random unit vectors, a hundredth of them written at a time."""
    encoder = EncoderFingerprint(
        id="random", weights_sha256="", preprocessing="none", normalize=True, embed_dim=embed_dim
    )
    store = Store(folder, encoder, "float16")
    rng = np.random.default_rng(0)
    for part, count in enumerate(np.diff(np.linspace(0, rows, 101, dtype=int)).tolist()):
        vectors = rng.standard_normal((count, embed_dim), np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        store.append([_row(f"images/{part:03d}/{row:06d}.jpg", vector) for row, vector in enumerate(vectors)])


def scan(folder: Path) -> int:
    total, count = np.zeros(1, np.float64), 0
    for batch in scan_embeddings(folder, ["key", "label"]):
        total = total + batch.embedding.sum(axis=0, dtype=np.float32)
        count += len(batch.embedding)
    assert np.isfinite(total).all()
    return count


def open_store(folder: Path) -> int:
    return int(Store(folder, fingerprint_of(part_files(folder)[0])).knows("0" * 64))


def names(folder: Path) -> int:
    return read_names(folder).num_rows


def read(folder: Path) -> int:
    return len(read_embeddings(folder, fingerprint_of(part_files(folder)[0])))


PASSES: dict[str, Callable[[Path], int]] = {"scan": scan, "open": open_store, "names": names, "read": read}


def measured(name: str, folder: Path) -> dict[str, float]:
    """One pass in this process; its imports alone take the `imports_mib`."""
    imports = _peak_mib()
    start = time.perf_counter()
    PASSES[name](folder)
    seconds = time.perf_counter() - start
    return {"seconds": round(seconds, 1), "peak_mib": round(_peak_mib()), "imports_mib": round(imports)}


def measured_alone(name: str, folder: Path) -> dict[str, float]:
    """One pass in a process of its own, because peak memory never goes down."""
    command = [sys.executable, "-m", "benchmarks.store_scan", "--measure", name, "--folder", str(folder)]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)


def _row(key: str, vector: np.ndarray) -> Row:
    content = hashlib.sha256(vector.tobytes()).hexdigest()
    return Row(key, f"/data/{key}", content, 640, 480, ("safe", "nsfw")[int(vector[0] > 0)], None, vector)


def _peak_mib() -> float:
    """Linux's own count of this program; getrusage's would start at that of the process that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    [peak] = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(peak) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.store_scan", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--embed-dim", type=int, default=768)
    parser.add_argument("--measure", choices=list(PASSES), help="one pass over an existing --folder, in this process")
    parser.add_argument("--folder", type=Path, help="of an existing store")
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measured(arguments.measure, arguments.folder)))
        return
    told = machine()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "store"
        write_store(folder, arguments.rows, arguments.embed_dim)
        size = sum(part.stat().st_size for part in part_files(folder)) / 2**20
        shape = {"rows": arguments.rows, "embed_dim": arguments.embed_dim, "dtype": "float16", "disk_mib": round(size)}
        passes = {name: measured_alone(name, folder) for name in PASSES}
    print(f"{'pass':>8} {'seconds':>8} {'peak MiB':>9} {'of imports':>11}")
    for name, row in passes.items():
        print(f"{name:>8} {row['seconds']:8.1f} {row['peak_mib']:9.0f} {row['imports_mib']:11.0f}")
    print_result("benchmarks.store_scan", told, **shape, passes=passes)


if __name__ == "__main__":
    main()
