"""``[reward] require_audit = true``: each reward of a recipe has an audit of exactly what is loaded, and passed it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlreason.config import Recipe, RewardTable
from rlreason.errors import UsageError
from rlreason.inputs import RecipeFiles
from rlreason.rewards import plugins
from rlreason.rewards.audit import record
from rlreason.rewards.audit.identity import identify
from rlreason.rewards.audit.record import Stored
from rlreason.rewards.environment import FromEnvironment
from rlreason.rewards.mix import RewardMix
from rlreason.run.manifest import AuditEntry, AuditRate
from rlreason.types import Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """A reward that needs an audit. ``verifier``: of accuracy, which one it asks."""

    name: str
    options: Mapping[str, object]
    verifier: str = ""

    @property
    def command(self) -> str:
        """What makes the audit."""
        words = ["rlreason", "audit", self.name]
        if self.verifier and self.verifier != "math":
            words += ["--verifier", self.verifier]
        for key, value in self.options.items():
            words += ["--option", f"{key}={_toml(value)}"]
        return shlex.join(words)


def required_audits(
    recipe: Recipe, mixes: Mapping[str, RewardMix], files: RecipeFiles, verifiers: Sequence[str]
) -> list[AuditEntry]:
    """The audits that a run of ``recipe`` rests on; none where it asks for none. ``verifiers``: of its problems, which
    accuracy asks; ``mixes``: of ``recipe.reward_tables``.

    Raises UsageError for a reward without one, with the command that makes it.
    """
    if not recipe.reward_audit.require_audit:
        return []
    found: list[AuditEntry] = []
    missing: list[str] = []
    for wanted in _wanted(recipe, mixes, verifiers):
        identity = identify(files.loaded(wanted.name), wanted.options, files.loaded(wanted.verifier))
        stored, why = record.find(identity, list(_places(recipe, wanted, files)))
        if stored is not None:
            found.append(_entry(wanted.name, stored))
            continue
        reason = f" ({'; '.join(why[:3])})" if why else ""
        shape = "" if wanted.verifier else ", with --kind shape where it says nothing of right and wrong"
        missing.append(f"{identity.reward} has no audit that it passed{reason}{shape}: {wanted.command}")
    if missing:
        raise UsageError("[reward] require_audit = true: " + "; ".join(missing))
    return found


def _wanted(recipe: Recipe, mixes: Mapping[str, RewardMix], verifiers: Sequence[str]) -> Iterator[_Wanted]:
    """Each reward with its options once, in whichever tables it stands."""
    found: list[_Wanted] = []
    for place, table in recipe.reward_tables.items():
        found += [one for one in _wanted_of(table, mixes[place], verifiers) if one not in found]
    yield from found


def _wanted_of(table: RewardTable, mix: RewardMix, verifiers: Sequence[str]) -> Iterator[_Wanted]:
    by_name = {part.name: part for part in mix.parts}
    for name in table:
        label = plugins.parse(name).label if ":" in name else name
        part = by_name.get(label) or by_name[name]
        options = dict(part.options)
        if name == "accuracy":
            yield from (_Wanted(name=name, options=options, verifier=one) for one in verifiers)
        else:
            yield _Wanted(name=name, options=options)


def _places(recipe: Recipe, wanted: _Wanted, files: RecipeFiles) -> Iterator[Path]:
    if recipe.reward_audit.audits is not None:
        yield Path(recipe.reward_audit.audits)
    for name in (wanted.name, wanted.verifier):
        if ":" in name and plugins.parse(name).is_file:
            yield Path(plugins.parse(name).place).parent
    yield files.base / record.FOLDER
    yield Path(record.FOLDER)


def _entry(name: str, stored: Stored) -> AuditEntry:
    return AuditEntry(
        reward=name,
        path=str(stored.path),
        created=stored.created,
        sources=dict(stored.identity.sources),
        calibrated_on=stored.calibrated_on,
        false_positive=_rate(stored.false_positive),
        false_negative=_rate(stored.false_negative),
    )


def _rate(interval: Interval | None) -> AuditRate | None:
    if interval is None:
        return None
    return AuditRate(value=interval.value, low=interval.low, high=interval.high, count=interval.count)


def _toml(value: object) -> str:
    """A value as ``--option`` reads it."""
    if isinstance(value, FromEnvironment):
        return f'{{ env = "{value.name}" }}'
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{key} = {_toml(one)}' for key, one in value.items())} }}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value)
