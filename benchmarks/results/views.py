"""Views of a result: its tables, and the findings in a sentence or two, made from the figures alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from benchmarks.comparison import comparison_table
from benchmarks.results.pictures import GROWTH_TITLES
from benchmarks.results.stored import Result
from benchmarks.tables import Row, heading, number, sentence, table, words
from tuning.candidates import Setting
from tuning.choice import Curve, Point, best_point

_SHOWN_ELSEWHERE = {"benchmark", "command", "date", "took_s", "machine", "comparisons"}


@dataclass(frozen=True)
class View:
    """Everything that is shown of one result.

    Attributes:
        findings: sentences; none where the tables say it all.
        tables: the rows of each, with what stands above it, which may be empty.
        remarks: below the tables.
    """

    findings: list[str] = field(default_factory=list)
    tables: Sequence[tuple[str, Sequence[Row]]] = ()
    remarks: list[str] = field(default_factory=list)


def terminal_text(result: Result) -> str:
    """Text of a result as a benchmark prints it: what the page shows, with the targets at the end."""
    seen = view(result)
    tables = [f"{above}\n{table(rows, aligned=True)}" for above, rows in seen.tables]
    targets = [comparison_table(result["comparisons"], aligned=True)] if result.get("comparisons") else []
    return "\n\n".join([*seen.findings, *tables, *seen.remarks, *targets])


def view(result: Result) -> View:
    return VIEWS.get(result["benchmark"], anything)(result)


# ---- any benchmark ----


def anything(result: Result) -> View:
    """View of any result: each list or dict of rows as a table, every other figure in one line."""
    figures = {key: value for key, value in result.items() if key not in _SHOWN_ELSEWHERE}
    tables = {key: rows_of(value) for key, value in figures.items()}
    rest = {key: value for key, value in figures.items() if not tables[key]}
    line = "; ".join(f"{heading(key)}: {words(value)}" for key, value in rest.items())
    shown = [(f"{sentence(heading(key))}:", rows) for key, rows in tables.items() if rows]
    return View(tables=shown, remarks=[f"{sentence(line)}."] if line else [])


def rows_of(value: object) -> list[Row]:
    """Rows of a list of dicts, or of a dict with a dict or such a list for each name, which becomes the first column.

    A dict of figures is one row; anything else has none.
    """
    if is_rows(value):
        return [*value]
    if not isinstance(value, dict) or not value:
        return []
    groups = [each if is_rows(each) else [each] for each in value.values()]
    if all(is_rows(rows) for rows in groups):
        return [{"": name} | row for name, rows in zip(value, groups, strict=True) for row in rows]
    return [value]


def is_rows(value: object) -> TypeGuard[list[dict[str, Any]]]:
    return isinstance(value, list) and bool(value) and all(isinstance(each, dict) for each in value)


# ---- peers ----


_PEER_COLUMNS = {
    "name": "",
    "version": "version",
    "images_per_s": "images/s",
    "p50_ms": "p50, ms",
    "p99_loaded_ms": "p99 at equal load, ms",
    "cpu_ms": "CPU ms an image",
    "busy": "cores busy",
    "resident_mib": "MiB",
    "cold_start_s": "cold start, s",
    "difference": "differs by",
    "setting": "setting",
}


def peers(result: Result) -> View:
    rows = result["peers"]
    cells = [row | ({"busy": f"{row['busy']:.0%}"} if row.get("busy") is not None else {}) for row in rows]
    shown = [{title: row.get(key) for key, title in _PEER_COLUMNS.items() if key in row} for row in cells]
    problems = [(row["name"], " ".join(row["problem"].split())) for row in rows if row.get("problem")]
    how = f"Medians of {result['rounds']} interleaved rounds of {number(result['seconds'])} s; {result['encoder']}."
    if result.get("idle") == "stopped":
        how += " The processes of all others were stopped (SIGSTOP) while one was measured, and it was warmed again."
    remarks = [f"{name} was not measured to the end: {problem}" for name, problem in problems]
    tables: list[tuple[str, Sequence[Row]]] = [(how, shown)]
    if ratios := result.get("paired_ratios"):
        tables.append(("Images/s of ours ÷ another's in the same round: median (lowest to highest).", _ratios(ratios)))
    return View(_peers_findings(rows), tables, remarks)


def _ratios(ratios: list[dict[str, Any]]) -> list[Row]:
    """A row for each of the others, a column for each of ours."""
    columns = dict.fromkeys(ratio["ours"] for ratio in ratios)
    spreads = {
        (ratio["to"], ratio["ours"]): f"{ratio['median']:.2f} ({ratio['lowest']:.2f} to {ratio['highest']:.2f})"
        for ratio in ratios
    }
    others = dict.fromkeys(ratio["to"] for ratio in ratios)
    return [{"÷": to} | {ours: spreads.get((to, ours)) for ours in columns} for to in others]


def _peers_findings(rows: list[dict[str, Any]]) -> list[str]:
    """Ours beside the best of the others and the limit, of those with the same weights."""
    measured = [row for row in rows if row.get("images_per_s")]
    groups = dict.fromkeys(row.get("weights") for row in measured)
    return [
        sentence
        for weights in groups
        for sentence in _findings_of(
            {row["name"]: row["images_per_s"] for row in measured if row.get("weights") == weights}
        )
    ]


def _findings_of(speeds: dict[str, float]) -> list[str]:
    others = {name: speed for name, speed in speeds.items() if name != "limit" and not name.startswith("clipsieve")}
    best = max(others, key=lambda name: others[name], default=None)
    sentences = []
    for name in (name for name in speeds if name.startswith("clipsieve")):
        beside = [f"{number(speeds[name] / others[best])} × {best}, the fastest of the others"] if best else []
        beside += [f"{speeds[name] / speeds['limit']:.0%} of one process without a server"] if "limit" in speeds else []
        sentences.append(f"{name}: {number(speeds[name])} images/s" + "".join(f", {each}" for each in beside) + ".")
    return sentences


# ---- preprocessing ----


def preprocessing(result: Result) -> View:
    sizes, cosine = result["sizes"], result.get("cosine") or {}
    names = list(sizes[0]["methods"])
    rows = [{"": name} | {f"{size['megapixels']:g} MP": _speed(size, name) for size in sizes} for name in names]
    how = f"Images/s of one core, and relative to open_clip's transform; medians of {result['rounds']} rounds."
    tables: list[tuple[str, Sequence[Row]]] = [(how, rows)]
    if cosine:
        tables.append(("Cosine of embeddings, scaled to exact:", rows_of(cosine)))
    largest = sizes[-1]
    sentences = [
        f"At {largest['megapixels']:g} megapixels {name} runs at {largest['methods'][name]['relative']:.2f} × "
        "the speed of open_clip's transform."
        for name in ("exact", "scaled")
        if name in largest["methods"]
    ]
    return View(sentences, tables)


def _speed(size: Mapping[str, Any], name: str) -> str:
    row = size["methods"][name]
    return f"{number(row['images_per_s'])} ({row['relative']:.2f} ×)"


# ---- growth ----


def growth(result: Result) -> View:
    """The titles of the pictures, and every list of rows of each part."""
    parts = {part: result[part] for part in GROWTH_TITLES if part in result}
    tables = [
        (f"{sentence(heading(part))}, {heading(key)}:", rows)
        for part, figures in parts.items()
        for key, value in figures.items()
        if (rows := rows_of(value))
    ]
    problems = [f"{part} was not measured: {problem}" for part, problem in result.get("problems", {}).items()]
    return View([f"{GROWTH_TITLES[part](figures)}." for part, figures in parts.items()], tables, problems)


# ---- precision ----


def precision(result: Result) -> View:
    """A table for each encoder: int8 on every instruction set, then all methods on the processor as it is."""
    tables = []
    for encoder in result["encoders"]:
        sets = encoder["instruction_sets"]
        weights = "trained" if encoder["pretrained"] == "its own" else encoder["pretrained"]
        above = f"{encoder['model']} ({weights} weights; {encoder['head']}), int8 beside fp32 of the same processor:"
        rows = [{"instruction set": name} | _beside_fp32(methods) for name, methods in sets.items()]
        tables.append((above, rows))
    return View(tables=tables)


def _beside_fp32(methods: dict[str, Any]) -> dict[str, Any]:
    int8 = methods["int8"]
    return {
        "fp32 images/s": methods["fp32"]["images_per_s"],
        "int8 images/s": int8["images_per_s"],
        "int8 ÷ fp32": int8["relative"],
        "lowest cosine": f"{int8['cosine_min']:.5f}",
        "largest change of a score": int8["score_max_change"],
        "decisions changed": int8["decisions_changed"],
    }


# ---- tune ----


def tune(result: Result) -> View:
    """Tell what was chosen, and give a row for each setting at the concurrency of its best rate."""
    chosen, own = Setting(**result["chosen"]), Setting(**result["own"])
    settings = {Setting(**row["setting"]): [Point(**point) for point in row["curve"]] for row in result["settings"]}
    rows = [_tuned_row(setting, points, chosen, own) for setting, points in settings.items()]
    was_own = "the recipe's own setting" if chosen == own else f"{chosen} instead of {own}"
    found = f"{result['recipe']} ({result['encoder']}): chosen is {was_own}: {Point(**result['now'])}"
    before = "" if chosen == own or not result["before"] else f"; the recipe's own has {Point(**result['before'])}"
    return View([f"{found}{before}."], [("Each setting at its best rate, medians of the rounds:", rows)])


def _tuned_row(setting: Setting, points: Curve, chosen: Setting, own: Setting) -> Row:
    marks = [word for word, other in (("chosen", chosen), ("the recipe's", own)) if setting == other]
    best = best_point(points, None)
    return {"setting": str(setting), "": ", ".join(marks)} | {
        key: getattr(best, key, None) for key in ("images_per_s", "concurrency", "p50_ms", "p99_ms")
    }


VIEWS: dict[str, Callable[[Result], View]] = {
    "peers": peers,
    "preprocessing": preprocessing,
    "growth": growth,
    "precision": precision,
    "tune": tune,
}
