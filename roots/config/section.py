"""The base of every config section: frozen, and strict about unknown keys."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A frozen group of fields, each with a default and one line of help."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)
