"""The parts of the benchmark on a GPU, each really run on this machine's CPU, and those that fail beside them."""

from __future__ import annotations

import json

import pytest

from benchmarks.gpu import encoders
from benchmarks.gpu.__main__ import main, run_part
from benchmarks.gpu.plan import TINY, Part, Rows, Settings

DRY = Settings.of(True, 0.01)


def test_operations_are_those_of_the_layers():
    """By hand: 17 tokens of a ViT of width 128 with 2 layers, a patch of 16 × 16 × 3, a projection to 64."""
    encoder, dims = encoders.encoder_of(TINY)
    assert dims == (64, 64, 3)
    tokens, width, layers = 17, 128, 2
    a_layer = tokens * (3 * width**2 + width**2 + 8 * width**2) + 2 * tokens**2 * width
    products = 16 * (16 * 16 * 3) * width + layers * a_layer + width * 64
    assert encoders.flops_per_image(encoder, dims) == pytest.approx(2 * products, rel=0.02)


def test_torch_runs_the_encoder_and_compiles_it(tmp_path):
    rows = Rows(tmp_path / "rows.json")
    encoders.torch_rates(TINY, DRY, rows)
    assert [(row["runs"], row["batch"]) for row in rows] == [
        (runs, batch) for batch in DRY.batches for runs in ("torch", "torch.compile (aot_eager)")
    ]
    for row in rows:
        assert row["device"] == "CPU"
        assert row["images_per_s"] == pytest.approx(1000 * row["batch"] / row["ms"])


def test_a_dry_run_writes_its_figures_and_says_what_it_is(tmp_path, capsys):
    assert main(["--dry-run", "--seconds", "0.01", "--only", "matmul", "decoding", "--out", str(tmp_path)]) == 0
    figures = json.loads((tmp_path / "gpu.json").read_text())
    assert figures["dry_run"] is True
    assert {part["part"]: part["status"] for part in figures["parts"]} == {"matmul": "measured", "decoding": "measured"}
    assert [row["dtype"] for row in figures["parts"][0]["rows"]] == ["fp16", "fp32"]
    assert "no number below says anything about a GPU" in (tmp_path / "gpu.md").read_text()
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["benchmark"] == "gpu"


def test_without_a_gpu_a_part_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    result = run_part(Part("matmul", None, 600), Settings.of(False, 0.01), tmp_path, 600)
    assert result["status"] == "cannot run"
    assert "sees no GPU; try python -m benchmarks.gpu --dry-run" in result["reason"]


def test_a_part_that_fails_or_takes_too_long_is_a_result(tmp_path):
    failed = run_part(Part("torch", "no model", 600), DRY, tmp_path, 600)
    assert (failed["status"], failed["reason"]) == ("failed (1)", "KeyError: 'no model'")
    stopped = run_part(Part("matmul", None, 600), DRY, tmp_path, 0.01)
    assert (stopped["status"], stopped["rows"]) == ("stopped", [])
    assert run_part(Part("matmul", None, 600), DRY, tmp_path, None)["status"] == "not run"
