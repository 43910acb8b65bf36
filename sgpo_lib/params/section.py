"""What all sections have in common: no unknown keys, no truth values for numbers, text that can be printed."""

import re
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)

UNPRINTABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")  # control characters, and halves of surrogate pairs


Positive = Annotated[float, Field(gt=0)]


Share = Annotated[float, Field(ge=0, le=1)]


Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A part of a params file: typed, frozen, and without keys that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _is_of_its_kind(cls, value: Any, info: ValidationInfo) -> Any:
        for part in value if isinstance(value, list | tuple) else [value]:
            if isinstance(part, bool) and cls.model_fields[info.field_name].annotation is not bool:
                raise ValueError("should not be a truth value")
            if isinstance(part, str) and UNPRINTABLE.search(part):
                raise ValueError("should be one line of valid Unicode text")
        return value
