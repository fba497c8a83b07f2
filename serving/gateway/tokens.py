"""Bearer tokens: a file with a line for each, of which only the SHA-256 is kept, compared in constant time.

A token is 32 random bytes, which nobody guesses: a plain hash keeps it as well as a slow one would.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from pathlib import Path

from serving.gateway.problems import Problem
from serving.gateway.settings import GatewayError

_LINE = re.compile(r"(?P<name>[A-Za-z0-9_.@-]{1,64}) sha256:(?P<digest>[0-9a-f]{64})")
_TOKEN_BYTES = 32
EVERYBODY = "everybody"
"""Name of whoever calls a gateway without tokens."""


def new_token() -> str:
    return secrets.token_urlsafe(_TOKEN_BYTES)


def token_line(name: str, token: str) -> str:
    """The line of a token file.

    Raises:
        GatewayError: the name cannot stand in a line.
    """
    line = f"{name} sha256:{digest_of(token)}"
    if not _LINE.fullmatch(line):
        raise GatewayError(f"a token's name is 1 to 64 letters, digits or any of _ . @ -, found {name!r}")
    return line


def digest_of(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def read_tokens(file: Path) -> dict[str, str]:
    """Names by digest.

    Raises:
        GatewayError: the file cannot be read, or a line is none of a token.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise GatewayError(f"the tokens in {file} cannot be read: {error}") from None
    names: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise GatewayError(
                f"{file}, line {number} is not `NAME sha256:DIGEST`; python -m serving.gateway.token makes such lines"
            )
        names[match["digest"]] = match["name"]
    if not names:
        raise GatewayError(f"{file} holds no token: add one with python -m serving.gateway.token NAME --file {file}")
    return names


class Doorkeeper:
    """Knows who may come in; reads its file again when it has changed, and keeps the old tokens while it is broken."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._stamp = _stamp(file)
        self._names = read_tokens(file) if file else {}

    def name_of(self, authorization: str) -> str:
        """The name of whoever sends this header.

        Raises:
            Problem: UNAUTHORIZED.
        """
        if self._file is None:
            return EVERYBODY
        self._refresh(self._file)
        scheme, _, token = authorization.partition(" ")
        digest = digest_of(token.strip())
        # All of them, so that the time says nothing about which were nearly right.
        matches = [name for known, name in self._names.items() if hmac.compare_digest(known, digest)]
        if scheme.lower() != "bearer" or not matches:
            problem = "the token is not let in" if authorization else "send the header Authorization: Bearer TOKEN"
            raise Problem("UNAUTHORIZED", problem, {"WWW-Authenticate": "Bearer"})
        return matches[0]

    def _refresh(self, file: Path) -> None:
        stamp = _stamp(file)
        if stamp == self._stamp or stamp is None:
            return
        self._stamp = stamp
        try:
            self._names = read_tokens(file)
        except GatewayError as error:
            print(f"serving.gateway: {error}; the tokens from before stay", flush=True)


def _stamp(file: Path | None) -> tuple[int, int, int] | None:
    try:
        status = file.stat() if file else None
    except OSError:
        return None
    return status and (status.st_mtime_ns, status.st_size, status.st_ino)
