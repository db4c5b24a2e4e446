"""The base of every config section: frozen, finite, and strict about unknown keys."""

from __future__ import annotations

import re
from decimal import Decimal
from types import NoneType
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from roots.config.yaml_reader import Scalar, plain

# At most two digits of exponent: no text of a few characters may ask for a number of gigabytes.
_EXPONENT_FORM = re.compile(r"[-+]?\d+(\.\d*)?[eE]\+?\d{1,2}")


class Section(BaseModel):
    """A frozen group of fields, each with a default and one line of help."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _read_scalars(cls, data: Any) -> Any:
        """Take every scalar of a YAML file for what its field asks for: its text, or its value."""
        if not isinstance(data, dict):
            return data
        fields = cls.model_fields
        read = {}
        for key, value in data.items():
            annotation = fields[key].annotation if key in fields else None
            if is_section(annotation) and is_null(value):
                # A section under which nothing stands says nothing.
                continue
            read[key] = _read_as(annotation, value)
        return read

    @field_validator("*", mode="before")
    @classmethod
    def _check_kind(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse text without a sign or with invisible ones, and truth values for numbers."""
        annotation = cls.model_fields[str(info.field_name)].annotation
        kinds = (annotation, *get_args(annotation))
        if isinstance(value, str) and str in kinds:
            if not value.strip():
                raise PydanticCustomError("empty", "Must not be empty")
            if not value.isprintable():
                raise PydanticCustomError("invisible", "Must have no control characters")
        if isinstance(value, bool) and bool not in kinds and (int in kinds or float in kinds):
            raise PydanticCustomError("number", "Must be a number, not a truth value")
        return value

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


def takes_text(annotation: Any) -> bool:
    """Whether a field of this type is any text, and not one of a few words, or a list of texts."""
    return get_origin(annotation) is not tuple and str in (annotation, *get_args(annotation))


def is_section(annotation: Any) -> bool:
    """Whether a section stands there, and not a field."""
    return isinstance(annotation, type) and issubclass(annotation, Section)


def is_null(value: Any) -> bool:
    """Whether nothing, or what YAML takes for it, is given."""
    return value is None or (isinstance(value, Scalar) and value.value is None)


def _read_as(annotation: Any, value: Any) -> Any:
    """`value` for a field of this type; sections inside it read their own fields."""
    if takes_text(annotation) and isinstance(value, Scalar):
        nothing = NoneType in get_args(annotation) and value.value is None
        return None if nothing else str(value)
    if is_section(annotation) or any(is_section(each) for each in get_args(annotation)):
        return plain(value) if isinstance(value, Scalar) and is_section(annotation) else value
    return plain(value)
