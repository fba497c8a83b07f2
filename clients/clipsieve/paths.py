r"""Paths as text that any reader of UTF-8 accepts, and back without loss.

A path on Linux is bytes, and Python shows those that are not UTF-8 as lone surrogates (`\udc80` is byte
80), which CSV, JSON and Parquet cannot hold. Each becomes the six characters `\udc80`. Only where a
name really contains such six characters are the backslashes before them doubled. Every other path,
backslashes included, is written as it is.
"""

from __future__ import annotations

import re

_NEEDS_ESCAPE = re.compile(r"\\+(?=ud[89a-f][0-9a-f]{2}|[\ud800-\udfff])|[\ud800-\udfff]")
_ESCAPED = re.compile(r"(\\+)ud([89a-f][0-9a-f]{2})")


def text_from_path(path: str) -> str:
    """The path as it is written in tables."""
    return path if path.isascii() and "\\" not in path else _NEEDS_ESCAPE.sub(_escape, path)


def path_from_text(text: str) -> str:
    """The path that `text_from_path` wrote; open() takes it."""
    return _ESCAPED.sub(_unescape, text)


def _escape(match: re.Match[str]) -> str:
    matched = match[0]
    return matched * 2 if matched.startswith("\\") else f"\\u{ord(matched):04x}"


def _unescape(match: re.Match[str]) -> str:
    backslashes, digits = match.groups()
    kept = "\\" * (len(backslashes) // 2)
    return kept + (chr(int(f"d{digits}", 16)) if len(backslashes) % 2 else f"ud{digits}")
