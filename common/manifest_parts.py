"""Parts of which a manifest's models are made: those whose keys are fixed, and those that releases add keys to."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer


class Part(BaseModel):
    """A part whose every key is known; another key in the file is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class GrowingPart(BaseModel):
    """A part that later releases add keys to, each an optional field.

    A field that was not set is not written, and a key of another release is kept: a file that is read and written
    again stays as it is.
    """

    model_config = ConfigDict(extra="allow", frozen=True, serialize_by_alias=True)

    @model_serializer(mode="wrap")
    def _what_is_set(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = type(self).model_fields
        unset = {fields[name].alias or name for name in fields.keys() - self.model_fields_set}
        return {key: value for key, value in serialize(self).items() if key not in unset}
