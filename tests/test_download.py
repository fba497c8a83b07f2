"""Downloads: checked, resumed, and never half-written over what was there."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from training.download import download
from training.errors import StepError

CONTENT = bytes(range(256)) * 2000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Site:
    """A server of one file, which breaks off after `stops_after` bytes of each answer, if set."""

    url: str
    stops_after: int | None = None
    status: int | None = None
    ranges: bool = True
    ranges_requested: list[str | None] = field(default_factory=list)


@pytest.fixture
def site() -> Iterator[Site]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requested = self.headers.get("Range")
            running.ranges_requested.append(requested)
            start = int(requested.removeprefix("bytes=").rstrip("-")) if requested and running.ranges else 0
            if running.status is not None or start > len(CONTENT):
                return self.send_error(running.status or 416)
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(CONTENT) - start))
            self.end_headers()
            end = len(CONTENT) if running.stops_after is None else start + running.stops_after
            self.wfile.write(CONTENT[start:end])
            return None

        def log_message(self, format, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running = Site(f"http://127.0.0.1:{server.server_port}/head.pth")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield running
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_file_is_downloaded_once(site, tmp_path):
    target = tmp_path / "downloads" / "head.pth"
    assert download(site.url, target, SHA256).read_bytes() == CONTENT
    download(site.url, target, SHA256)
    assert site.ranges_requested == [None]
    assert [path.name for path in target.parent.iterdir()] == ["head.pth"]


def test_a_download_that_breaks_off_is_resumed_by_itself(site, tmp_path):
    site.stops_after = len(CONTENT) // 2 + 1
    assert download(site.url, tmp_path / "head.pth", SHA256).read_bytes() == CONTENT
    assert site.ranges_requested == [None, f"bytes={site.stops_after}-"]


def test_the_next_run_goes_on_where_the_last_one_stopped(site, tmp_path):
    site.stops_after = 1000
    with pytest.raises(StepError, match=r"broke off after 3000 of 512000 bytes.*; 3000 bytes are kept, run again"):
        download(site.url, tmp_path / "head.pth", SHA256)
    assert not (tmp_path / "head.pth").exists()
    site.stops_after = None
    assert download(site.url, tmp_path / "head.pth", SHA256).read_bytes() == CONTENT
    assert site.ranges_requested[-1] == "bytes=3000-"


def test_a_server_without_ranges_sends_all_again(site, tmp_path):
    (tmp_path / "head.pth.partial").write_bytes(CONTENT[:1000])
    site.ranges = False
    assert download(site.url, tmp_path / "head.pth", SHA256).read_bytes() == CONTENT


def test_a_partial_file_that_is_too_long_is_thrown_away(site, tmp_path):
    (tmp_path / "head.pth.partial").write_bytes(CONTENT + b"more")
    assert download(site.url, tmp_path / "head.pth", SHA256).read_bytes() == CONTENT


def test_a_complete_partial_file_is_taken(site, tmp_path):
    (tmp_path / "head.pth.partial").write_bytes(CONTENT)
    assert download(site.url, tmp_path / "head.pth", SHA256).read_bytes() == CONTENT


def test_a_wrong_sum_is_refused_and_what_was_there_stays(site, tmp_path):
    (tmp_path / "head.pth").write_bytes(b"before")
    with pytest.raises(StepError, match=f"sha256 is {SHA256}, expected {'0' * 64}"):
        download(site.url, tmp_path / "head.pth", "0" * 64)
    assert [path.name for path in tmp_path.iterdir()] == ["head.pth"]
    assert (tmp_path / "head.pth").read_bytes() == b"before"


def test_a_file_that_is_not_there_is_not_tried_again(site, tmp_path):
    site.status = 404
    with pytest.raises(StepError, match=r"head\.pth: the server answered 404 Not Found"):
        download(site.url, tmp_path / "head.pth", None)
    assert len(site.ranges_requested) == 1


def test_an_unreachable_address_is_named(tmp_path):
    with pytest.raises(StepError, match=r"http://127\.0\.0\.1:9/head\.pth: could not be downloaded \(.*refused"):
        download("http://127.0.0.1:9/head.pth", tmp_path / "head.pth", SHA256)
