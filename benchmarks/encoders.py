"""Encoders built end to end, each as `make encoder` does it: sizes, seconds, peak memory, and parity with torch.

    python -m benchmarks.encoders                  # all of them; bigG needs 22 GiB of memory and half an hour
    python -m benchmarks.encoders 'siglip*' b-32   # by name, with wildcards

Weights are random: what is measured is the export and how exactly it computes, which does not depend on them
being trained, and nothing is downloaded. Everything is built in a temporary folder and deleted. Prints a table
and one JSON line.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml
from rich.console import Console

from benchmarks.machine import hardware_line, machine, print_result, versions_line
from benchmarks.tables import print_table
from common.manifest import read_encoder
from common.paths import ROOT

_B32 = {"model": "ViT-B-32-quickgelu"}
_SIGLIP = {"model": "ViT-B-16-SigLIP"}
ENCODERS: dict[str, dict] = {
    "b-32": _B32,
    "b-16": {"model": "ViT-B-16"},
    "l-14": {"model": "ViT-L-14-quickgelu"},
    "l-14-336": {"model": "ViT-L-14-336-quickgelu"},
    "siglip-b-16": _SIGLIP,
    "siglip2-b-16-256": {"model": "ViT-B-16-SigLIP2-256"},
    "eva02-b-16": {"model": "EVA02-B-16"},
    "mobileclip2-s0": {"model": "MobileCLIP2-S0"},
    "convnext-base-w": {"model": "convnext_base_w"},
    "rn50": {"model": "RN50-quickgelu"},
    "timm-l-14": {"library": "timm", "model": "vit_large_patch14_clip_quickgelu_224"},
    "timm-aimv2-l-14": {"library": "timm", "model": "aimv2_large_patch14_224"},
    "timm-convnext-tiny": {"library": "timm", "model": "convnext_tiny"},
    "b-32-layers": _B32 | {"layers": [0, 2, 5]},
    "b-32-and-siglip": {"concatenate": [_B32, _SIGLIP]},
    "h-14": {"model": "ViT-H-14"},
    "g-14": {"model": "ViT-g-14"},
    "bigg-14": {"model": "ViT-bigG-14"},
}


@dataclass(frozen=True)
class Row:
    name: str
    embed_dim: int
    pixels: str
    megabytes: float
    """Size of model.onnx and the weights beside it."""
    seconds: float
    peak_gib: float
    """Resident memory of the whole build."""
    cosine_min: float
    cosine_mean: float
    max_abs_difference: float


def build(name: str, encoder: dict, folder: Path) -> Row:
    """`python -m build.encoder` in a process of its own."""
    recipe = folder / "recipe.yaml"
    head = {"name": "any", "class_names": ["no", "yes"]}
    recipe.write_text(yaml.safe_dump({"name": name, "description": name, "encoder": encoder, "heads": [head]}))
    environment = os.environ | {"CLIPSIEVE_ARTIFACTS": str(folder)}
    command = [sys.executable, "-m", "build.encoder", "--recipe", str(recipe)]
    started = time.perf_counter()
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=err)
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    if status:
        raise RuntimeError(f"{name}: {(folder / 'err').read_text()[-500:]} (status {status})")
    built = Path((folder / "out").read_text().strip()).parent
    manifest = read_encoder(built)
    return Row(
        name=name,
        embed_dim=manifest.embed_dim,
        pixels=" + ".join(view.id.removeprefix("exact-") for view in manifest.preprocessing),
        megabytes=sum(path.stat().st_size for path in built.glob("model.onnx*")) / 1e6,
        seconds=seconds,
        peak_gib=usage.ru_maxrss / 2**20,
        cosine_min=manifest.parity.cosine_min,
        cosine_mean=manifest.parity.cosine_mean,
        max_abs_difference=manifest.parity.max_abs_difference,
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.encoders")
    parser.add_argument("names", nargs="*", default=["*"], help=f"of {', '.join(ENCODERS)}")
    patterns = parser.parse_args().names
    chosen = [name for name in ENCODERS if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]
    if not chosen:
        parser.error(f"no encoder matches {' '.join(patterns)}; there are {', '.join(ENCODERS)}")
    hardware = machine()
    console = Console(stderr=True)
    console.print(f"{hardware_line(hardware)}; {versions_line(hardware)}; random weights")
    rows = []
    for name in chosen:
        console.print(name)
        with tempfile.TemporaryDirectory() as folder:
            rows.append(asdict(build(name, ENCODERS[name], Path(folder))))
    print_table(rows)
    print_result("benchmarks.encoders", hardware, rows=rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
