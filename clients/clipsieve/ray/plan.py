"""Plans which inputs a bulk job scores into which file. Made once; a job that is started again goes on with it.

The output folder holds

    _run.json       what the job is; only the same command may go on with it. Written last: then the plan is whole.
    _plan.parquet   one column with the inputs; each row group is a unit of work
    part-00000.parquet, …   for images, the rows of a unit, in its order
    <shard>.parquet         for shards, which are a unit each

Readers of Parquet folders pass over names that begin with `_` or a dot.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import chain, islice
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from clipsieve.exceptions import InputRefused, OutputRefused
from clipsieve.inputs import MORE_SUFFIXES, Inputs
from clipsieve.lists import is_list, paths_from_table
from clipsieve.passed_over import PassedOver
from clipsieve.paths import path_from_text, text_from_path
from clipsieve.ray.storage import (
    TEMPORARY,
    fetched,
    file_names,
    files_below,
    is_remote,
    joined,
    local_path,
    locate,
    opened,
    whole_file,
)
from clipsieve.shards import is_shard, shard_stem

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_FORMAT = 1
_RUN, _PLAN = "_run.json", "_plan.parquet"
_REMEDY = "repeat the command as it was to go on with it, give --overwrite to start anew, or name another --out"


@dataclass(frozen=True)
class Plan:
    """The units of a job and the files they are scored into.

    Args:
        out: the output folder, a path or an address.
        run_id: of this plan; another one for each time a job starts anew.
        folder: relative names of inputs are in this folder.
        of_shards: the inputs are shards, one in each unit.
        units: how many there are.
        inputs: images, or shards, in all units.
        passed_over: counts of what the folders held besides, by kind.
        formats: names of the formats that only some servers take, and whose files in folders are among the inputs.
    """

    out: str
    run_id: str
    folder: str
    of_shards: bool
    units: int
    inputs: int
    passed_over: Mapping[str, int] = field(default_factory=dict)
    formats: Sequence[str] = ()

    @cached_property
    def _table(self) -> pq.ParquetFile:
        import pyarrow.parquet as pq

        filesystem, path = locate(joined(self.out, _PLAN))
        return pq.ParquetFile(filesystem.open_input_file(path))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without the open file."""
        return Plan, tuple(getattr(self, each.name) for each in fields(self))

    def names(self, unit: int) -> list[str]:
        """Inputs of a unit, as the user named them."""
        return [path_from_text(text) for text in self._table.read_row_group(unit).column(0).to_pylist()]

    def _all_names(self) -> Iterator[str]:
        for batch in self._table.iter_batches():
            yield from map(path_from_text, batch.column(0).to_pylist())

    def fits(self, unit: int, rows: int) -> bool:
        """Check that a unit may have so many rows; the rows of a shard are not known before it is read."""
        return self.of_shards or rows == self._table.metadata.row_group(unit).num_rows

    def parts_there(self) -> dict[int, str]:
        """The units that have an output file, whatever is in it, and its base name."""
        names = set(file_names(self.out))
        parts = map(part_of_shard, self._all_names()) if self.of_shards else map(self.part, range(self.units))
        return {unit: part for unit, part in enumerate(parts) if part in names}

    def part(self, unit: int) -> str:
        """Base name of its output."""
        return part_of_shard(self.names(unit)[0]) if self.of_shards else f"part-{unit:05}.parquet"

    def metadata_of(self, shard: str) -> str:
        """Name of the table that may lie beside a shard."""
        resolved = self.resolved(shard)
        path, mark, options = resolved.partition("?") if is_remote(resolved) else (resolved, "", "")
        folder, slash, _ = path.rpartition("/")
        return f"{folder}{slash}{part_of_shard(resolved)}{mark}{options}"

    def resolved(self, name: str) -> str:
        """Absolute path or address of an input."""
        return name if is_remote(name) else os.path.join(self.folder, local_path(name))


def part_of_shard(shard: str) -> str:
    return f"{shard_stem(PurePosixPath(shard.partition('?')[0] if is_remote(shard) else shard))}.parquet"  # type: ignore[arg-type]


def names_in(inputs: Inputs) -> Iterator[str]:
    """Images or shards, in the order given; like `Inputs`, but also from object storage.

    Raises:
        InputRefused: nothing matches, a list cannot be read, or a storage cannot be reached.
    """
    inputs.passed_over.clear()
    for path in inputs.paths:
        if not is_remote(path) and is_list(path) and not os.path.isdir(local_path(path)):
            yield from paths_from_table(local_path(path), inputs.column)
        elif not is_remote(path):
            below = replace(inputs, paths=(local_path(path),), passed_over=PassedOver())
            yield from below
            inputs.passed_over.update(below.passed_over)
        elif is_list(path):
            with fetched(path) as copy:
                yield from paths_from_table(copy, inputs.column)
        else:
            yield from files_below(path, inputs)


def planned(out: str, inputs: Inputs, rows_per_file: int, options: Mapping[str, Any], overwrite: bool = False) -> Plan:
    """The plan in the output folder; a new one if there is none.

    Which formats the servers take is not known here. Where the folders hold only files that some servers take, they
    are the inputs for now: see `planned_for`.

    Args:
        rows_per_file: images in a unit.
        options: what else must be the same when a job goes on, as JSON values.
        overwrite: start anew, and delete what the job before has written.

    Raises:
        InputRefused: no input, or shards and images together.
        OutputRefused: the folder holds another job's output, or something else.
    """
    identity = _identity(inputs, rows_per_file, options)
    names = file_names(out)
    if _RUN in names and not overwrite:
        return _plan_of(out, _read_run(out), identity)
    _check_ours(out, names)
    if _RUN in names:
        _delete_run(Plan(out, **_read_run(out)["plan"]))
    try:
        return _new_plan(out, inputs, (), rows_per_file, identity)
    except _NothingToDo as nothing:
        try:
            return _new_plan(out, inputs, sorted(MORE_SUFFIXES), rows_per_file, identity)
        except _NothingToDo:
            raise nothing from None


def planned_for(
    formats: Iterable[str], plan: Plan, inputs: Inputs, rows_per_file: int, options: Mapping[str, Any]
) -> Plan:
    """A plan of which nothing is scored yet, with the files in folders that are in these formats, and no others.

    It is made anew where that makes a difference. Arguments as for `planned`.

    Raises:
        InputRefused: there is nothing to do.
    """
    more = sorted(MORE_SUFFIXES.keys() & set(formats))
    is_missing = any(plan.passed_over.get(suffix) for name in more for suffix in MORE_SUFFIXES[name])
    if inputs.pattern is not None or not (is_missing or set(plan.formats) - set(more)):
        return plan
    _delete_run(plan)
    return _new_plan(plan.out, inputs, more, rows_per_file, _identity(inputs, rows_per_file, options))


def delete_leftovers(out: str) -> None:
    """Files that a worker that died had begun. Only for when nobody writes."""
    filesystem, path = locate(out)
    for name in file_names(out):
        if TEMPORARY.fullmatch(name):
            filesystem.delete_file(f"{path}/{name}")


class _NothingToDo(InputRefused):
    """There is no input."""


def _new_plan(
    out: str, inputs: Inputs, formats: Sequence[str], rows_per_file: int, identity: Mapping[str, Any]
) -> Plan:
    names = names_in(inputs.taking(formats))
    first = next(names, None)
    if first is None:
        passed_over = f" ({inputs.passed_over.summary()})" if inputs.passed_over else ""
        raise _NothingToDo(f"nothing to do: no image files and no shards; see --pattern{passed_over}")
    filesystem, path = locate(out)
    filesystem.create_dir(path, recursive=True)
    of_shards = is_shard(first)
    units = _units(chain([first], names), 1 if of_shards else rows_per_file)
    units = _checked_shards(units) if of_shards else _checked_images(units)
    counts = _write_plan(joined(out, _PLAN), units)
    plan = {
        "run_id": uuid4().hex,
        "folder": os.getcwd(),
        "of_shards": of_shards,
        "units": len(counts),
        "inputs": sum(counts),
        "passed_over": dict(inputs.passed_over),
        "formats": list(formats),
    }
    with whole_file(joined(out, _RUN)) as file:
        file.write(json.dumps({"identity": identity, "plan": plan}, indent=1).encode())
    return Plan(out, **plan)


def _write_plan(name: str, units: Iterable[list[str]]) -> list[int]:
    """Write the plan; returns how many inputs each unit has."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("input", pa.string())])
    counts = []
    with whole_file(name) as file, pq.ParquetWriter(file, schema) as writer:
        for unit in units:
            table: pa.Table = pa.table({"input": [text_from_path(name) for name in unit]}, schema=schema)
            writer.write_table(table, row_group_size=len(unit))
            counts.append(len(unit))
    return counts


def _units(names: Iterator[str], size: int) -> Iterator[list[str]]:
    while unit := list(islice(names, size)):
        yield unit


def _checked_images(units: Iterable[list[str]]) -> Iterator[list[str]]:
    for unit in units:
        for name in unit:
            if is_shard(name):
                raise InputRefused(f"{name}: shards (.tar) and images have different tables; score them in two jobs")
        yield unit


def _checked_shards(units: Iterable[list[str]]) -> Iterator[list[str]]:
    taken: dict[str, str] = {}
    for unit in units:
        (shard,) = unit
        if not is_shard(shard):
            raise InputRefused(f"{shard} is no shard (.tar, .tar.gz); score images in another job")
        part = part_of_shard(shard)
        if part in taken:
            problem = f"{taken[part]} and {shard} would both be written to {part}"
            raise InputRefused(f"{problem}; rename one, or score them into different folders")
        taken[part] = shard
        yield unit


def _identity(inputs: Inputs, rows_per_file: int, options: Mapping[str, Any]) -> dict[str, Any]:
    relative = any(is_list(path) or not (is_remote(path) or os.path.isabs(local_path(path))) for path in inputs.paths)
    identity = {
        "format": _FORMAT,
        "inputs": list(inputs.paths),
        "folder": os.getcwd() if relative else None,
        "pattern": inputs.pattern,
        "column": inputs.column,
        "rows_per_file": rows_per_file,
        **options,
    }
    return json.loads(json.dumps(identity))


def _plan_of(out: str, run: Mapping[str, Any], identity: Mapping[str, Any]) -> Plan:
    stored = run["identity"]
    differing = [
        f"{key}: {_shown(stored.get(key))}, now {_shown(identity.get(key))}"
        for key in {**stored, **identity}
        if stored.get(key) != identity.get(key)
    ]
    if differing:
        raise OutputRefused(f"{out} is a job with other {'; '.join(differing)}. {_REMEDY}")
    return Plan(out, **run["plan"])


def _read_run(out: str) -> dict[str, Any]:
    with opened(joined(out, _RUN)) as file:
        text = file.read()
    try:
        run = json.loads(text)
        return {"identity": dict(run["identity"]), "plan": dict(run["plan"])}
    except (ValueError, KeyError, TypeError):
        raise OutputRefused(f"{joined(out, _RUN)} is damaged; name another --out") from None


def _check_ours(out: str, names: list[str]) -> None:
    others = [name for name in names if name.endswith(".parquet") and name != _PLAN]
    if others and _RUN not in names:
        raise OutputRefused(f"{out} holds {others[0]}, which no clipsieve-bulk wrote there; name another --out")


def _delete_run(plan: Plan) -> None:
    filesystem, path = locate(plan.out)
    for part in plan.parts_there().values():
        filesystem.delete_file(f"{path}/{part}")
    for name in (_RUN, _PLAN):
        filesystem.delete_file(f"{path}/{name}")


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
