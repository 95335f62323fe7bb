"""Values that a recipe names and does not hold."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

#: ``{ env = "NAME" }``: the value is in that environment variable, read where it is used and written nowhere.
FromEnvironment = Annotated[
    dict[Literal["env"], Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]], Field(min_length=1)
]
