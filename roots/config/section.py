"""The base of every config section: frozen, finite, and strict about unknown keys."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

# At most two digits of exponent: no text of a few characters may ask for a number of gigabytes.
_EXPONENT_FORM = re.compile(r"[-+]?\d+(\.\d*)?[eE]\+?\d{1,2}")


class Section(BaseModel):
    """A frozen group of fields, each with a default and one line of help."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _read_exponent_form(cls, value: Any, info: ValidationInfo) -> Any:
        """Read `1e3` and `3.75e8` as whole numbers where one is due; to YAML 1.1 they are text."""
        if not isinstance(value, str) or _EXPONENT_FORM.fullmatch(value) is None:
            return value
        annotation = cls.model_fields[str(info.field_name)].annotation
        number = Decimal(value)
        if int not in (annotation, *get_args(annotation)) or number != int(number):
            return value
        return int(number)
