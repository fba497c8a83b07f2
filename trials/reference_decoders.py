"""Other programs' opinion of an image file: does an independent decoder take it?

Debian's libjpeg-turbo-progs, pngcheck, netpbm, webp and libavif-bin; HEIC has none beside its decoder. A program that
is not installed has no opinion, and `missing()` names it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

COMMANDS = {
    "JPEG": ("djpeg", "-pnm", "-outfile", "/dev/null", "{file}"),
    "PNG": ("pngtopam", "{file}"),
    "WEBP": ("dwebp", "-quiet", "{file}", "-o", "/dev/null"),
    "GIF": ("giftopnm", "-image=1", "-quitearly", "{file}"),
    "BMP": ("bmptopnm", "{file}"),
    "AVIF": ("avifdec", "--no-strict", "{file}", "{file}.y4m"),
    "TIFF": ("tifftopnm", "{file}"),
}
STRICT = {"JPEG": ("djpeg", "-strict", "-pnm", "-outfile", "/dev/null", "{file}"), "PNG": ("pngcheck", "-q", "{file}")}
"""Programs that refuse what browsers show: their verdict is counted, not followed."""

SHOWN = {"djpeg": {0, 2}}
"""Exit statuses with a picture: djpeg's 2 is one with warnings, such as a part left grey."""


@dataclass(frozen=True)
class Verdict:
    """One program's answer to a file.

    Attributes:
        program: its name.
        refuses: it gave no picture.
        words: of its error, without numbers and paths.
    """

    program: str
    refuses: bool
    words: str


def missing() -> list[str]:
    return sorted({command[0] for command in [*COMMANDS.values(), *STRICT.values()] if not shutil.which(command[0])})


def verdicts(format: str, path: str) -> list[Verdict]:
    """Answers of the reference for this format, and of its strict program when there is one."""
    if format == "WEBP" and b"ANMF" in Path(path).read_bytes():  # dwebp shows no animations
        return []
    commands = [commands[format] for commands in (COMMANDS, STRICT) if format in commands]
    return [_verdict(command, path) for command in commands if shutil.which(command[0])]


def _verdict(command: tuple[str, ...], path: str) -> Verdict:
    arguments = [argument.format(file=path) for argument in command]
    name = " ".join(command[:2]) if "-strict" in command else command[0]
    try:
        run = subprocess.run(arguments, capture_output=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        return Verdict(name, False, "no answer within 60 s")
    words = _words((run.stderr or run.stdout[:1000]).decode(errors="replace"))
    return Verdict(name, run.returncode not in SHOWN.get(name, {0}), words)


def _words(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return re.sub(r"\S*/\S*|0x[0-9a-f]+|\d+", "#", lines[-1])[:90] if lines else ""
