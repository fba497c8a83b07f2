"""Options in groups: a command takes a dataclass for each, and its help shows them under the group's title.

@dataclass
class ServerOptions:
    url: Annotated[str | None, option("--url", "Address of the server.", ...)] = None

@app.command(cls=GroupedCommand)
@grouped
def health(server: ServerOptions) -> None: ...
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_type_hints

import typer
from typer.core import TyperCommand


def option(flags: str, text: str, *, group: str, metavar: str | None = None, **more: Any) -> Any:
    """An option with a variable in the environment, `CLIPSIEVE_` and its long name.

    Args:
        flags: `--out` or `--quiet/-q`; the first is the long name.
        group: the title in the help under which it stands.
    """
    names = flags.split("/")
    variable = f"CLIPSIEVE_{names[0].removeprefix('--').replace('-', '_').upper()}"
    defaults = {"show_default": False, "envvar": variable, "rich_help_panel": group}
    return typer.Option(*names, help=text, metavar=metavar, **(defaults | more))


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose dataclass parameters are flattened into one option for each field."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}

    @functools.wraps(command)
    def flat(**values: Any) -> None:
        built = {
            name: kind(**{field.name: values.pop(field.name) for field in fields(kind)})
            for name, kind in groups.items()
        }
        command(**values, **built)

    parameters = [
        flattened
        for name, given in inspect.signature(command).parameters.items()
        for flattened in (
            _field_parameters(groups[name]) if name in groups else [_parameter(name, hints[name], given.default)]
        )
    ]
    flat.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    flat.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del flat.__wrapped__  # type: ignore[attr-defined]  # typer would look through to the groups
    return flat


def _field_parameters(kind: type[Any]) -> list[inspect.Parameter]:
    hints = get_type_hints(kind, include_extras=True)
    return [_parameter(field.name, hints[field.name], _default(field)) for field in fields(kind)]


def _default(field: Any) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return inspect.Parameter.empty if field.default is MISSING else field.default


def _parameter(name: str, hint: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)


class GroupedCommand(TyperCommand):
    """A command whose help lists the options under the titles of their groups, as plain text."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                title = getattr(parameter, "rich_help_panel", None)
                title = title or ("Arguments" if parameter.param_type_name == "argument" else "Options")
                sections.setdefault(title, []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)
