"""Pictures for the page: small ones are made when they are asked for, in a few threads, and kept up to so many bytes.

A large one is the file itself where browsers show its format: they decode it faster than it could be made smaller, and
nothing of it is lost. Its header has been checked, and it goes out under its own type alone.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor

from clipsieve.images import read_image
from clipsieve.report.thumbnails import opened_image, thumbnail_from_file

THUMBNAIL, LARGE = 248, 1600
"""Longer sides in pixels. A photograph of 4,000 is decoded at an eighth for a small one, which is twice that."""
_SHOWN_BY_BROWSERS = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "GIF": "image/gif"}
_LARGEST_FILE = 16 * 2**20
_THREADS = min(3, os.cpu_count() or 1)
_MOST_BYTES = 48 * 2**20

_Key = tuple[str, int, int, int]


class ImageCache:
    """JPEGs of files by path and size; safe to share between threads."""

    def __init__(self, most_bytes: int = _MOST_BYTES) -> None:
        self._most = most_bytes
        self._bytes = 0
        self._made: OrderedDict[_Key, bytes] = OrderedDict()
        self._pending: dict[_Key, Future[bytes]] = {}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="picture")

    def jpeg(self, path: str, edge: int) -> bytes:
        """The picture, its longer side `edge` pixels or less.

        Raises:
            ImageRejected: it cannot be read or decoded.
            OSError: the file is not there.
        """
        status = os.stat(path)
        key = path, edge, status.st_mtime_ns, status.st_size
        with self._lock:
            if key in self._made:
                self._made.move_to_end(key)
                return self._made[key]
            future = self._pending.get(key)
            if future is None:
                future = self._pending[key] = self._pool.submit(self._make, key)
        return future.result()

    def large(self, path: str) -> tuple[bytes, str]:
        """The picture to look at, and its media type.

        Raises:
            ImageRejected: it cannot be read, or is no picture.
            OSError: the file is not there.
        """
        if os.stat(path).st_size <= _LARGEST_FILE:
            data = read_image(path)
            with opened_image(data) as image:
                if image.format in _SHOWN_BY_BROWSERS and image.mode != "CMYK":
                    return data, _SHOWN_BY_BROWSERS[image.format]
        return self.jpeg(path, LARGE), "image/jpeg"

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _make(self, key: _Key) -> bytes:
        try:
            jpeg = thumbnail_from_file(key[0], key[1]).jpeg
        except BaseException:
            with self._lock:
                del self._pending[key]
            raise
        with self._lock:
            del self._pending[key]
            self._made[key] = jpeg
            self._bytes += len(jpeg)
            while self._bytes > self._most and len(self._made) > 1:
                self._bytes -= len(self._made.popitem(last=False)[1])
        return jpeg
