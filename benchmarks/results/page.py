"""The page: what it says follows from the stored results, the notes and the benchmarks' docstrings alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.catalogue import Command, find_benchmarks
from benchmarks.comparison import comparison_table
from benchmarks.machine import hardware_line, versions_line
from benchmarks.results.pictures import captions
from benchmarks.results.stored import FOLDER, Result, in_order, read_notes, read_results, stored_name
from benchmarks.results.views import view
from benchmarks.tables import duration, number, table
from common.paths import ROOT

PAGE = ROOT / "benchmarks" / "RESULTS.md"

TITLE = """# Results of the reference run

Drawn by `python -m benchmarks.results` from the JSON lines that the benchmarks printed, kept in [results/](results/);
what people wrote of them stands there in Markdown. `make bench` lists every benchmark."""
NONE_STORED = """No result is stored yet. `python -m benchmarks.results --store FILE` takes the output of a benchmark,
kept up to its last line."""


@dataclass(frozen=True)
class Stored:
    """All that the page is made of."""

    results: Mapping[str, Result]
    notes: Mapping[str, str]
    benchmarks: Mapping[str, Command]

    def with_results(self, fresh: Sequence[Result]) -> Stored:
        """These in place of those of the same names."""
        return replace(self, results=in_order({**self.results, **{stored_name(each): each for each in fresh}}))


def read_stored(folder: Path = FOLDER) -> Stored:
    """
    Raises:
        ResultError: a file is not a result.
    """
    return Stored(read_results(folder), read_notes(folder), find_benchmarks())


def page_text(stored: Stored) -> str:
    if not stored.results:
        return f"{TITLE}\n\n{NONE_STORED}\n"
    same = _common_machine(stored.results)
    parts = [TITLE, *(_machine(same, "One machine for all") if same else []), _targets_in_short(stored.results)]
    for name, result in stored.results.items():
        benchmark = stored.benchmarks[result["benchmark"]]
        parts += _section(name, benchmark, result, stored.notes.get(name), same is None)
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(name: str, benchmark: Command, result: Result, note: str | None, with_machine: bool) -> list[str]:
    """Paragraphs."""
    seen = view(result)
    parts = [f"## {name}", benchmark.sentence, f"```sh\n{result['command']}\n```", _when(result)]
    parts += _machine(result["machine"], "Machine") if with_machine else []
    parts += [" ".join(seen.findings)] if seen.findings else []
    parts += [f"![{name}: {caption}](results/{file})" for file, caption in captions(result).items()]
    for above, rows in seen.tables:
        parts += [above, table(rows)]
    parts += seen.remarks
    parts += _targets(result, note is not None)
    return [*parts, *([note] if note else [])]


def _when(result: Result) -> str:
    took = f", took {duration(result['took_s'])}" if "took_s" in result else ""
    load = number(float(result["machine"]["load_before"]))
    return f"{result['date']}{took}, load average before {load}; [all figures](results/{stored_name(result)}.json)."


def _machine(machine: Mapping[str, Any], what: str) -> list[str]:
    return [f"{what}: {hardware_line(machine)}.", f"Versions: {versions_line(machine)}."]


def _common_machine(results: Mapping[str, Result]) -> dict[str, Any] | None:
    """The machine of all results, or None when they differ in more than the load."""
    machines = [
        {key: value for key, value in each["machine"].items() if key != "load_before"} for each in results.values()
    ]
    return machines[0] if all(each == machines[0] for each in machines) else None


# ---- targets ----


def _targets_in_short(results: Mapping[str, Result]) -> str:
    targets = [(name, row) for name, result in results.items() for row in result.get("comparisons", [])]
    if not targets:
        return ""
    met = sum(row["met"] is True for _, row in targets)
    missed = [f"[{row['name']}](#{name})" for name, row in targets if row["met"] is False]
    unknown = sum(row["met"] is None for _, row in targets)
    text = f"Targets: {met} of {len(targets)} met"
    text += f", {len(missed)} missed ({'; '.join(missed)})" if missed else ""
    return text + (f", {unknown} not measured." if unknown else ".")


def _targets(result: Result, has_note: bool) -> list[str]:
    rows = result.get("comparisons", [])
    if not rows:
        return []
    is_unexplained = any(row["met"] is False for row in rows) and not has_note
    reminder = f"Where the time goes is not written down yet: `results/{stored_name(result)}.md` is not there."
    return [comparison_table(rows), *([reminder] if is_unexplained else [])]
