"""A page of `clipsieve review` as users run it: a process of its own, and requests to it."""

from __future__ import annotations

import csv
import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from gateways import Answer
from pictures import jpeg

from common.paths import ROOT


@dataclass(frozen=True)
class RunningReview:
    """A page that answers."""

    address: str
    process: subprocess.Popen[str]

    @property
    def port(self) -> int:
        return urlsplit(self.address).port or 0

    @property
    def token(self) -> str:
        return parse_qs(urlsplit(self.address).query)["token"][0]

    def send(
        self, path: str, body: Any = None, headers: Mapping[str, str] | None = None, method: str | None = None
    ) -> Answer:
        """Send one request, with the token unless `headers` are given."""
        if headers is None:
            headers = {"Authorization": f"Bearer {self.token}", "X-Clipsieve-Review": "1"}
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method or ("GET" if data is None else "POST"), path, data, dict(headers))
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def ids(self) -> dict[str, int]:
        """Numbers of the pictures by their files' names."""
        places = self.send("/order?sort=name").json["ids"]
        rows = self.send(f"/rows?ids={','.join(map(str, places))}").json
        return {Path(row["name"]).name: row["id"] for row in rows}

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@contextmanager
def running_review(*arguments: str | Path, environment: Mapping[str, str] | None = None) -> Iterator[RunningReview]:
    """`clipsieve review` with these arguments, ended as by Ctrl-C."""
    command = [sys.executable, "-m", "clipsieve.cli", "review", *map(str, arguments), "--no-browser", "--quiet"]
    env = os.environ | {"PYTHONUNBUFFERED": "1"} | dict(environment or {})
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:"), address
        yield RunningReview(address, process)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        process.stdout.close()


def write_pictures(folder: Path, count: int) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{number}.jpg" for number in range(count)]
    for number, file in enumerate(files):
        file.write_bytes(jpeg(seed=number))
    return files


def write_scores(table: Path, files: list[Path], scores: list[float], head: str = "taste") -> Path:
    """A table of a head of keep and delete, whose threshold is 0.5; pictures 0 and 1 are near-duplicates."""
    with table.open("w", newline="") as text:
        writer = csv.writer(text)
        names = [f"{head}_score", f"{head}_decision", f"{head}_class_name"]
        writer.writerow(["image_path", *names, "label", "group"])
        for number, (file, score) in enumerate(zip(files, scores, strict=True)):
            cells = ["block", "delete"] if score >= 0.5 else ["allow", "keep"]
            writer.writerow([file, score, *cells, "", "a" if number < 2 else ""])
    return table


def rows_of(file: Path) -> list[list[str]]:
    """The rows of a CSV below its header."""
    with file.open(newline="") as text:
        return list(csv.reader(text))[1:]
