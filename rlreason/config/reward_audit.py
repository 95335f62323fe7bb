"""``require_audit`` and ``audits`` of the ``[reward]`` table: keys beside the names of rewards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from pydantic.json_schema import SkipJsonSchema

from rlreason.config.engine import Section

#: For the JSON schema: the table's own keys, whose values are no weights.
KEYS_SCHEMA: dict[str, Any] = {
    "properties": {
        "require_audit": {
            "type": "boolean",
            "default": False,
            "description": "Refuse to run unless every reward has an audit that it passed (rlreason audit).",
        },
        "audits": {
            "type": "string",
            "description": "A folder or file of audits, beside those that are next to a plug-in and in audits/.",
        },
    }
}


class RewardAudit(Section):
    """Example: ``RewardAudit(require_audit=True, audits="audits/2026")``."""

    require_audit: bool = False
    audits: str | None = None


def _taken_apart(recipe: object) -> object:
    """A recipe as read, with the keys taken out of ``[reward]`` into ``reward_audit``.

    Raises ValueError where one has a value of another type.
    """
    if not isinstance(recipe, Mapping) or not isinstance(recipe.get("reward"), Mapping):
        return recipe
    table = dict(recipe["reward"])
    found: dict[str, object] = {}
    for key, kind, words in (("require_audit", bool, "true or false"), ("audits", str, "a folder or a file, as text")):
        if key in table:
            value = table.pop(key)
            if not isinstance(value, kind):
                raise ValueError(f"reward.{key} must be {words}, not {value!r}")
            found[key] = value
    if not found:
        return recipe
    rest = {"reward": table} if table else {}
    return {**{key: value for key, value in recipe.items() if key != "reward"}, **rest, "reward_audit": found}


def _put_together(dumped: dict[str, Any], audit: RewardAudit) -> dict[str, Any]:
    """The other way, for a recipe that is written."""
    if not audit.require_audit and audit.audits is None:
        return dumped
    keys: dict[str, object] = {"require_audit": audit.require_audit}
    if audit.audits is not None:
        keys["audits"] = audit.audits
    return {**dumped, "reward": {**dumped["reward"], **keys}}


class AuditedRewards(Section):
    """A recipe's base: the keys are in ``[reward]`` where it is read and written, and in ``reward_audit`` between."""

    reward_audit: SkipJsonSchema[RewardAudit] = Field(default_factory=RewardAudit, exclude=True)

    @model_validator(mode="before")
    @classmethod
    def _audit_apart(cls, value: object) -> object:
        return _taken_apart(value)

    @model_serializer(mode="wrap")
    def _audit_inside(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _put_together(dump(self), self.reward_audit)
