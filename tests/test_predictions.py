"""Predictions of a folder as a table and over REST: the columns and numbers that a fine-tuning project prints."""

from __future__ import annotations

import base64
import csv
import io
import json

import pytest
from gateways import part, running_gateway
from pictures import jpeg

from tests.command_line import run_cli

COLUMNS = ["image_path", "probability", "prediction", "class_name"]


@pytest.fixture(scope="module")
def gateway(server, tmp_path_factory):
    with running_gateway(server.grpc_url, tmp_path_factory.mktemp("gateway")) as running:
        yield running


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    (folder / "deeper").mkdir()
    for number, name in enumerate(["a.jpg", "b.jpg", "deeper/c.jpg"]):
        (folder / name).write_bytes(jpeg(seed=number))
    return folder


def table(server, photos, kind: str) -> list[dict]:
    result = run_cli("score", photos, "--url", server.grpc_url, "--format", kind)
    assert result.exit_code == 0
    return json.loads(result.stdout) if kind == "json" else list(csv.DictReader(io.StringIO(result.stdout, newline="")))


def test_a_folder_becomes_csv_and_json_of_the_same_columns(server, photos):
    as_csv, as_json = table(server, photos, "csv"), table(server, photos, "json")
    assert [list(row)[:4] for row in as_csv + as_json] == [COLUMNS] * 6
    names = [f"{photos}/{name}" for name in ("a.jpg", "b.jpg", "deeper/c.jpg")]
    assert [row["image_path"] for row in as_json] == names
    for text, row in zip(as_csv, as_json, strict=True):
        assert (text["image_path"], text["class_name"]) == (row["image_path"], row["class_name"])
        assert float(text["probability"]) == pytest.approx(row["probability"], abs=1e-5)
        assert row["prediction"] == int(row["probability"] >= 0.5) == int(text["prediction"])
        assert row["class_name"] == ["angular", "round"][row["prediction"]]


def test_rest_answers_one_and_several_pictures_with_the_tables_numbers(server, gateway, photos):
    rows = table(server, photos, "json")
    files = [photos / "a.jpg", photos / "b.jpg", photos / "deeper" / "c.jpg"]
    one = gateway.send_json("/score", {"image": base64.b64encode(files[0].read_bytes()).decode()})
    several = gateway.send_form(*(part("image", file.read_bytes(), file.name) for file in files))
    assert (one.status, several.status) == (200, 200)
    heads = [result["heads"]["demo"] for result in several.json]
    assert len(heads) == 3
    for head, row in zip([one.json["heads"]["demo"], *heads], [rows[0], *rows], strict=True):
        assert head["score"] == pytest.approx(row["probability"], abs=1e-5)
        assert head["class"] == row["class_name"]


def test_health_is_that_of_the_whole_way(gateway):
    assert gateway.send("/health").status == 200
