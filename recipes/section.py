"""What all sections of a recipe share."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Url = Annotated[str, Field(pattern=r"^https?://[^/\s]+/.")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Section(BaseModel):
    """A part of a recipe: its keys are fields, their docstrings the text of recipes/README.md."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def is_unset(value: Any) -> bool:
    """True of a key that a recipe leaves out, which is then left out of manifests, as before there was the key."""
    return value is None or value == {}


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Texts = Annotated[list[str], BeforeValidator(_as_list)]
