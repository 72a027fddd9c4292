"""What all settings have in common: frozen, and a name that does not exist is refused."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

Fraction: TypeAlias = Annotated[float, Field(ge=0.0, le=1.0)]


class Config(BaseModel):
    """Base of every settings object."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
