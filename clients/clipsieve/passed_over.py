"""Counts what lies in the folders that are scored and is not scored, by kind, so that nothing vanishes unsaid."""

from __future__ import annotations

import os
from collections import Counter

LINKED_FOLDER = "linked folder"

_MOST_KINDS = 8
_OF_MACOS = "file of macOS (._*, .DS_Store, __MACOSX)"


class PassedOver(Counter[str]):
    """Counts by kind: a suffix such as `.heic`, or what else a file or folder is."""

    def add(self, kind: str) -> None:
        self[kind] += 1

    @staticmethod
    def kind_of(name: str, pattern: str | None) -> str:
        """The kind of a file that is not taken."""
        if pattern is not None:
            return "file that --pattern does not match"
        return os.path.splitext(name)[1].lower() or "file without a suffix"

    def summary(self) -> str:
        """`passed over: 3 .heic, 1 .tif; --pattern takes them`; empty when nothing was."""
        if not self:
            return ""
        most = sorted(self.items(), key=lambda item: (-item[1], item[0]))[:_MOST_KINDS]
        kinds = [f"{count} {_plural(kind) if count > 1 else kind}" for kind, count in most]
        if len(self) > _MOST_KINDS:
            kinds.append(f"{self.total() - sum(count for _, count in most)} of {len(self) - _MOST_KINDS} other kinds")
        remedy = "; --pattern takes them" if any(kind.startswith(".") for kind in self) else ""
        return f"passed over: {', '.join(kinds)}{remedy}"


def reason_to_pass_over(name: str) -> str | None:
    """The kind of a file or folder that a system leaves among pictures; None for the others."""
    return _OF_MACOS if name.startswith("._") or name in (".DS_Store", "__MACOSX") else None


def _plural(kind: str) -> str:
    if kind.startswith("."):
        return kind
    return kind.replace("file", "files", 1).replace("does not", "do not") if "file" in kind else f"{kind}s"
