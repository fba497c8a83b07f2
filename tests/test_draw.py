from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from recipes.schema import load_recipe
from training import draw
from training.errors import StepError


def _files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    draw.draw_set(folder, count=120, held_out=10, seed=0)
    return folder


def test_classes_are_the_demo_recipes() -> None:
    assert sorted(draw.CLASS_NAMES) == sorted(load_recipe("demo").heads[0].class_names)


def test_each_split_has_half_of_each_class(drawn: Path) -> None:
    counts = Counter(Path(name).parent.as_posix() for name in _files(drawn))
    assert counts == {"train/angular": 60, "train/round": 60, "held_out/angular": 5, "held_out/round": 5}


def test_formats_modes_and_sizes_vary(drawn: Path) -> None:
    kinds, sizes = set(), set()
    for data in _files(drawn).values():
        with Image.open(io.BytesIO(data)) as image:
            orientation = image.getexif().get(0x0112)
            kinds |= {(image.format, image.mode), (image.format, "turned" if orientation else "upright")}
            sizes.add(image.size)
            assert 90 <= min(image.size) <= max(image.size) <= 700
    assert kinds >= {
        ("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("JPEG", "turned"),
        ("PNG", "RGB"), ("PNG", "L"), ("PNG", "P"), ("PNG", "RGBA"), ("WEBP", "RGB"), ("WEBP", "RGBA"),
    }  # fmt: skip
    assert len(sizes) > 100


def test_transparent_pictures_are_partly_transparent(drawn: Path) -> None:
    for data in _files(drawn).values():
        with Image.open(io.BytesIO(data)) as image:
            if image.mode == "RGBA":
                lowest, highest = image.getchannel("A").getextrema()
                assert isinstance(lowest, int)
                assert lowest < 200
                assert highest >= 250


def test_same_seed_draws_the_same_files(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        draw.draw_set(tmp_path / name, count=6, held_out=2, seed=seed)
    assert _files(tmp_path / "a") == _files(tmp_path / "b")
    assert set(_files(tmp_path / "a").values()).isdisjoint(_files(tmp_path / "c").values())


def test_more_pictures_leave_the_first_ones_as_they_were(tmp_path: Path) -> None:
    draw.draw_set(tmp_path / "few", count=4, held_out=0, seed=0)
    draw.draw_set(tmp_path / "more", count=8, held_out=2, seed=0)
    assert _files(tmp_path / "few").items() <= _files(tmp_path / "more").items()


def test_held_out_pictures_are_new(drawn: Path) -> None:
    files = _files(drawn)
    assert len(set(files.values())) == len(files)


def test_mean_colour_tells_nothing() -> None:
    labels = np.arange(240) % 2
    pictures = (draw.draw_picture(int(label), np.random.default_rng([9, row])) for row, label in enumerate(labels))
    colours = np.stack([np.asarray(picture).mean(axis=(0, 1)) for picture in pictures]) / 255
    model = LogisticRegression().fit(colours[:120], labels[:120])
    assert roc_auc_score(labels[120:], model.predict_proba(colours[120:])[:, 1]) < 0.65


@pytest.mark.parametrize("outline", [draw._round_outline, draw._angular_outline])
def test_outlines_cover_equal_areas(outline) -> None:
    for seed in range(20):
        x, y = outline(np.random.default_rng(seed)).T
        assert abs(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))) / 2 == pytest.approx(1)


def test_a_turned_jpeg_is_upright_once_its_orientation_is_applied() -> None:
    picture = draw.draw_picture(1, np.random.default_rng(0))
    seen = set()
    for seed in range(40):
        data, _ = draw._turned_jpeg(picture, np.random.default_rng(seed))
        stored = Image.open(io.BytesIO(data))
        seen.add(stored.getexif()[0x0112])
        upright = ImageOps.exif_transpose(stored)
        assert upright.size == picture.size
        assert np.abs(np.asarray(upright, int) - np.asarray(picture, int)).mean() < 8
    assert seen == {2, 3, 4, 5, 6, 7, 8}


def test_command_prints_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw.main([str(tmp_path / "set"), "--count", "2", "--held-out", "2"])
    assert capsys.readouterr().out == f"{tmp_path / 'set'}\n"
    assert len(list((tmp_path / "set").glob("*/*/*"))) == 4


def test_negative_count_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="found --count -1"):
        draw.main([str(tmp_path), "--count", "-1"])


def test_what_is_drawn_already_is_not_drawn_again(tmp_path: Path, capsys) -> None:
    arguments = [str(tmp_path), "--count", "4", "--held-out", "2"]
    draw.main(arguments)
    pictures = sorted(tmp_path.glob("*/*/*"))
    pictures[0].write_bytes(b"mine")
    draw.main(arguments)
    assert pictures[0].read_bytes() == b"mine"
    assert "drawn before" in capsys.readouterr().err
    pictures[0].unlink()
    draw.main(arguments)
    assert sorted(tmp_path.glob("*/*/*")) == pictures
    draw.main([*arguments, "--seed", "1"])
    assert json.loads((tmp_path / draw.MADE).read_text())["seed"] == 1
