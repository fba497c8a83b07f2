"""The options of the steps that read labelled pictures, --data and the names of its columns."""

from __future__ import annotations

import argparse
from pathlib import Path

from training.tables import Columns


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Add --data, --format, and the options that name the columns of a table."""
    parser.add_argument("--data", required=True, help="folder with one subfolder per class, table or shards")
    parser.add_argument("--format", choices=["folders", "table", "shards"], help="of --data; seen by default")
    parser.add_argument("--path-column", help="of a table; default: image_path, path, file, filename or file_name")
    parser.add_argument("--label-column", default="label", help="of a table, or in a shard's json; default: label")
    parser.add_argument("--split-column", help="of a table that prescribes train, validation and test")
    parser.add_argument("--group-column", help="of a table: the person, burst or video, which keeps to one side")
    parser.add_argument("--image-root", type=Path, help="folder that a table's paths are relative to; default: its own")


def columns_of(arguments: argparse.Namespace) -> Columns:
    """The columns that the options name."""
    return Columns(
        arguments.path_column,
        arguments.label_column,
        arguments.split_column,
        arguments.group_column,
        arguments.image_root,
    )
