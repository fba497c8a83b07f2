"""The AutoKeras heads: texts become intervals of floats, and the archive is unpacked with care.

The original lookup is written out here with texts and dictionaries; that the real graphs agree is checked
against TensorFlow in test_import_head.
"""

from __future__ import annotations

import stat
import zipfile

import numpy as np
import pytest

from training.errors import StepError
from training.published import PUBLISHED
from training.published_keras import (
    _check_arrays,
    _check_verified,
    _scores,
    as_given,
    extract_saved_model,
    layers_and_tensors,
    text_intervals,
    verification_vectors,
)

EMBED_DIM = 16
COLUMNS = [3, 7]


def arrays(seed=0):
    """The arrays that keras_export.py extracts from a small head with two categorical columns."""
    rng = np.random.default_rng(seed)
    values = [
        np.unique(rng.uniform(-0.4, 0.4, 300).astype(np.float16)),
        np.unique(rng.uniform(-9e-5, 9e-5, 40).astype(np.float16)),
    ]
    tokens = [np.unique([f"{float(value):.6f}" for value in each if abs(value) > 1e-6]) for each in values]
    archive = {
        "columns": np.array(COLUMNS),
        "mean": rng.normal(0, 0.1, EMBED_DIM).astype(np.float32),
        "variance": rng.uniform(0.01, 0.2, EMBED_DIM).astype(np.float32),
        "smallest_std": np.float32(1e-7),
        "kernel_0": rng.standard_normal((EMBED_DIM, 6)).astype(np.float32),
        "bias_0": rng.standard_normal(6).astype(np.float32),
        "kernel_1": rng.standard_normal((6, 1)).astype(np.float32),
        "bias_1": rng.standard_normal(1).astype(np.float32),
    }
    for number, (column, texts) in enumerate(zip(COLUMNS, tokens, strict=True)):
        archive["variance"][column] = len(texts) ** 2 / 12
        archive["mean"][column] = len(texts) / 2
        archive["variance"][0] = 0  # a constant column: its std is the smallest
        archive[f"tokens_{number}"] = rng.permutation(texts)
        archive[f"ranks_{number}"] = np.arange(1, len(texts) + 1)
    return archive


def original(archive, x):
    """The graph as TensorFlow runs it: texts, dictionaries, one layer after the other."""
    y = x.astype(np.float64)
    for number, column in enumerate(archive["columns"]):
        ranks = dict(zip(archive[f"tokens_{number}"].tolist(), archive[f"ranks_{number}"].tolist(), strict=True))
        y[:, column] = [ranks.get(f"{float(value):.6f}", 0) for value in x[:, column]]
    y = (y - archive["mean"]) / np.maximum(np.sqrt(archive["variance"].astype(np.float64)), archive["smallest_std"])
    hidden = np.maximum(y @ archive["kernel_0"] + archive["bias_0"], 0)
    return 1 / (1 + np.exp(-(hidden @ archive["kernel_1"] + archive["bias_1"])))[:, 0]


def vectors(count=400):
    """Verification vectors, whose constant column is the constant it was in training."""
    archive = arrays()
    made = verification_vectors(archive, count)
    for x in made.values():
        x[:, 0] = archive["mean"][0]
    return made


@pytest.mark.parametrize("kind", ["float16", "float32", "float32_edges"])
@pytest.mark.parametrize("variant", ["published", "float16", "numeric"])
def test_every_variant_scores_as_the_original_does(variant, kind):
    archive, x = arrays(), vectors()[kind]
    ours = _scores(*layers_and_tensors(archive, variant), x)
    np.testing.assert_allclose(ours, original(archive, as_given(x, archive, variant)), atol=1e-5)


def test_the_variants_do_differ():
    archive, x = arrays(), vectors()
    scores = {
        variant: _scores(*layers_and_tensors(archive, variant), x["float16"]) for variant in ("published", "numeric")
    }
    assert np.abs(scores["published"] - scores["numeric"]).max() > 0.1
    rounded = _scores(*layers_and_tensors(archive, "float16"), x["float32"])
    assert np.abs(_scores(*layers_and_tensors(archive, "published"), x["float32"]) - rounded).max() > 0.1


def test_verification_vectors_are_what_they_say():
    made = verification_vectors(arrays(), 200)
    assert all(x.dtype == np.float32 and x.shape == (200, EMBED_DIM) for x in made.values())
    assert (made["float16"] == made["float16"].astype(np.float16)).all()
    np.testing.assert_allclose(np.linalg.norm(made["float32"], axis=1), 1, atol=1e-6)
    tokens = set(arrays()["tokens_0"].tolist())
    assert all(f"{value:.6f}" in tokens for value in made["float16"][:, COLUMNS[0]].tolist())
    inside = np.mean([f"{value:.6f}" in tokens for value in made["float32_edges"][:, COLUMNS[0]].tolist()])
    assert 0.2 < inside < 0.8


@pytest.mark.parametrize("rounded", [False, True])
def test_an_interval_is_all_floats_that_print_alike(rounded):
    rng = np.random.default_rng(0)
    halves = rng.uniform(-1, 1, 500).astype(np.float16)
    dyadic = np.array([1, 3, -1, -5], np.float16) / np.float16(128)  # exactly halfway between two texts
    micros = np.unique(np.rint(np.concatenate([halves, dyadic]).astype(np.float64) * 1e6))
    low, high = text_intervals(micros[micros != 0], rounded)
    infinity = np.float32(np.inf)

    def printed(x):
        value = np.float16(x) if rounded else x
        return f"{float(value):.6f}"

    for first, last, micro in zip(low, high, micros[micros != 0], strict=True):
        text = f"{micro / 1e6:.6f}"
        assert printed(first) == printed(last) == text
        assert printed(np.nextafter(first, -infinity)) != text
        assert printed(np.nextafter(last, infinity)) != text


def _zip(path, entries):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def test_a_saved_model_is_found_in_its_folder(tmp_path):
    archive = _zip(tmp_path / "a.zip", {"head/saved_model.pb": b"", "head/variables/variables.index": b""})
    assert extract_saved_model(archive, tmp_path / "out") == tmp_path / "out" / "head"


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({"readme.txt": b"hello"}, "holds 0 files saved_model.pb"),
        ({"a/saved_model.pb": b"", "b/saved_model.pb": b""}, "holds 2 files saved_model.pb"),
        ({"../saved_model.pb": b""}, r"'\.\./saved_model\.pb' would be written outside"),
        ({"a/../../saved_model.pb": b""}, "would be written outside"),
        ({"/saved_model.pb": b""}, "would be written outside"),
        ({"C:/saved_model.pb": b""}, "would be written outside"),
    ],
)
def test_other_archives_are_refused(tmp_path, entries, expected):
    with pytest.raises(StepError, match=expected):
        extract_saved_model(_zip(tmp_path / "a.zip", entries), tmp_path / "deep" / "out")
    assert not list(tmp_path.glob("saved_model.pb"))


def test_links_and_broken_archives_are_refused(tmp_path):
    link = zipfile.ZipInfo("head/saved_model.pb")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(StepError, match="is a link"):
        extract_saved_model(tmp_path / "a.zip", tmp_path / "out")
    (tmp_path / "b.zip").write_bytes(b"not a zip")
    with pytest.raises(StepError, match="not a zip archive"):
        extract_saved_model(tmp_path / "b.zip", tmp_path / "out")


def test_a_zip_bomb_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("head/saved_model.pb", bytes(101 * 2**20))
    with pytest.raises(StepError, match="at most 104857600 are expected"):
        extract_saved_model(tmp_path / "a.zip", tmp_path / "out")


def test_another_model_is_refused_with_what_differs():
    with pytest.raises(StepError, match=r"not laion-nsfw-b32: embed_dim is 16, expected 512; widths is \(6, 1\)"):
        _check_arrays(arrays(), PUBLISHED["laion-nsfw-b32"])


def test_an_import_that_scores_otherwise_fails():
    differing = {"float16": 2e-5, "float32": 1e-7}
    with pytest.raises(StepError, match=r"laion-nsfw-l14 \(float16\): .* by 2e-05 on float16 vectors.*nothing was"):
        _check_verified(differing, PUBLISHED["laion-nsfw-l14"], "float16")
    with pytest.raises(StepError, match="differ from the original"):
        _check_verified({"float16": float("nan")}, PUBLISHED["laion-nsfw-l14"], "published")
    _check_verified({"float16": 1e-5}, PUBLISHED["laion-nsfw-l14"], "published")
