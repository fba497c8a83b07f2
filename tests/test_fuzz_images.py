"""A few hundred damaged files of every format; trials.fuzz_images does the same with many thousands."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from clipsieve import Client
from trials.fuzz_images import CODES, answer, read_rows, transform, transform_of
from trials.image_mutations import FORMATS, MUTATIONS, mutant, pieces, repaired, seed_files

# Pillow warns of damaged metadata; the served code silences that, pytest makes it errors again.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
COUNT = 600


@pytest.mark.parametrize("format", FORMATS)
def test_seed_files_are_valid_and_cut_at_their_seams(format):
    for data in seed_files(format):
        assert answer(data, transform()) == "OK"
        assert b"".join(pieces(data, format)) == data
        assert repaired(data, format) == data


def test_a_mutant_follows_from_its_two_numbers():
    assert [mutant(index, 7) for index in range(40)] == [mutant(index, 7) for index in range(40)]
    assert mutant(3, 7) != mutant(3, 8)


def test_every_kind_of_damage_is_done_to_every_format():
    done = {(made.format, made.mutation) for made in (mutant(index, 0) for index in range(3000))}
    assert done == {(format, mutation) for format in FORMATS for mutation in MUTATIONS}


def test_damaged_files_are_answered_with_known_codes():
    decode = transform()
    answers = {answer(mutant(index, 0).data, decode) for index in range(COUNT)}
    assert answers <= CODES
    assert {"OK", "DECODE_FAILED", "NOT_AN_IMAGE", "TOO_MANY_PIXELS"} <= answers


def test_the_server_answers_as_the_transform_does(server, repository):
    decode = transform_of(repository)
    files = [mutant(index, 1).data for index in range(120)]
    with Client(server.grpc_url) as client:
        results = client.score(files)
        assert [result.error.code if result.error else "OK" for result in results] == [
            answer(data, decode) for data in files
        ]
        assert client.health().ok


def test_the_benchmark_goes_on_where_it_stopped(tmp_path):
    command = [sys.executable, "-m", "trials.fuzz_images", "--out", str(tmp_path), "--no-reference"]
    run = subprocess.run([*command, "--count", "60", "--workers", "1"], capture_output=True, text=True, check=True)
    assert json.loads(run.stdout.splitlines()[-1])["files"] == 60
    rows = tmp_path / "rows-0.jsonl"
    rows.write_text(rows.read_text()[:-10])  # the last line was being written
    subprocess.run([*command, "--count", "80", "--workers", "1"], capture_output=True, check=True)
    assert sorted(row["index"] for row in read_rows(rows)) == list(range(80))
