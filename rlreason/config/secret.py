"""Values that a recipe names and does not hold."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from rlreason.config.data import Scalar

#: ``{ env = "NAME" }``: the value is in that environment variable, read where it is used and written nowhere.
FromEnvironment = Annotated[
    dict[Literal["env"], Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]], Field(min_length=1)
]


def _names_no_variable(table: dict[str, Scalar]) -> dict[str, Scalar]:
    if "env" in table:
        raise ValueError('a table with env names an environment variable, and holds nothing else: { env = "NAME" }')
    return table


#: A table as an option of a reward; not one that was meant to be a ``FromEnvironment``.
OptionTable = Annotated[dict[str, Scalar], AfterValidator(_names_no_variable)]
