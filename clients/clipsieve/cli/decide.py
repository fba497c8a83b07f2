"""`clipsieve decide`"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from clipsieve.cli.grouped import grouped, option
from clipsieve.cli.options import exits
from clipsieve.decide import decide
from clipsieve.outputs import TABLE_SUFFIXES, check_output, check_place
from clipsieve.progress import Reporter

_DECISION = "Decision"

Table = Annotated[
    Path, typer.Argument(metavar="TABLE", help="A table that `clipsieve score` wrote.", exists=True, dir_okay=False)
]


@dataclass
class DecisionOptions:
    threshold: Annotated[
        list[float],
        option(
            "--threshold",
            "Scores at or above it are blocked. Given twice: at or above the lower for review, the higher blocked.",
            group=_DECISION,
            metavar="SCORE",
        ),
    ]
    head: Annotated[
        str | None,
        option(
            "--head", "Head, or head_label, whose score decides, if there are several.", group=_DECISION, metavar="NAME"
        ),
    ] = None
    out: Annotated[
        Path | None,
        option(
            "--out/-o", "Table to write; by default the decisions are only counted.", group=_DECISION, metavar="FILE"
        ),
    ] = None
    overwrite: Annotated[bool, option("--overwrite", "Replace the table if it exists.", group=_DECISION)] = False


@grouped
def decide_command(table: Table, decision: DecisionOptions) -> None:
    """Decide anew over a table of scores, by other thresholds: nothing is scored, and no server is needed.

    clipsieve decide scores.csv --threshold 0.3 --threshold 0.8 --out decided.csv
    """
    if decision.out is not None and decision.out.resolve() == table.resolve():
        raise typer.BadParameter("is the table itself: name another file", param_hint="--out")
    with exits(Reporter()):
        if decision.out is not None:
            check_place(decision.out, TABLE_SUFFIXES)
            check_output(decision.out, TABLE_SUFFIXES, decision.overwrite)
        changes = decide(table, decision.out, sorted(decision.threshold), decision.head)
    print(changes.summary(), file=sys.stderr)
