"""The table of faults: what was done, what the clients saw, what the server did, how many requests were lost.

    make demo                # builds what is served
    python -m trials.faults  # all, about 6 minutes
    python -m trials.faults --only SIGTERM clock

Each fault has a server of its own, with two kinds of honest clients on it: interactive ones that show every error, and
bulk ones that wait for a server that went away. A lost request got neither a score nor an error within its deadline.
Prints a table and one JSON line; the exit status is 1 when a request was lost or got another picture's score.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from benchmarks.machine import machine, print_result
from benchmarks.tables import print_table
from common.paths import repository_folder
from recipes.schema import load_recipe
from trials.faults import connections, processes, resources
from trials.faults.scene import Row, row_of

FAULTS = [*processes.FAULTS, *resources.FAULTS, *connections.FAULTS]


COLUMNS = {
    "fault": "done",
    "client_saw": "clients saw",
    "server_did": "server did",
    "gap_s": "longest gap, s",
    "lost": "lost",
    "wrong": "wrong",
}


def shown(row: Row) -> dict[str, object]:
    """The figures of a fault, or why it was not done."""
    return {"fault": row.fault, "client_saw": f"not run: {row.skipped}"} if row.skipped else asdict(row)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m trials.faults")
    parser.add_argument("--only", nargs="+", default=[""], help="faults whose name contains one of these")
    arguments, hardware = parser.parse_args(argv), machine()
    repository = repository_folder(load_recipe("demo"))
    rows = []
    for fault in FAULTS:
        if any(part in fault.name for part in arguments.only):
            print(f"{fault.name} …", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory(prefix="clipsieve-faults-") as folder:
                rows.append(row_of(fault, repository, Path(folder)))
    print_table([shown(row) for row in rows], COLUMNS)
    print_result("trials.faults", hardware, rows=[asdict(row) for row in rows])
    return 1 if any(row.lost or row.wrong for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
