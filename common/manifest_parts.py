"""Parts of which a manifest's models are made: those whose keys are fixed, and those that releases add keys to."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer


class Part(BaseModel):
    """A part whose every key is known; another key in the file is refused.

    Keys that came later, LATER, are not written at their default: a file that does not need them stays as it was, and
    older releases read it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    LATER: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _what_is_needed(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = type(self).model_fields
        idle = {name for name in self.LATER if getattr(self, name) == fields[name].default}
        return {key: value for key, value in serialize(self).items() if key not in idle}


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
