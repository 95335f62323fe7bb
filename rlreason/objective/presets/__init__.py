"""Objectives by the names of their papers, with their papers' defaults. No torch."""

from collections.abc import Mapping
from dataclasses import asdict
from types import MappingProxyType

from rlreason.errors import nearest
from rlreason.objective.presets import (
    cispo,
    dapo,
    dr_grpo,
    grpo,
    gspo,
    lite_ppo,
    maxrl,
    r1,
    reinforce_pp,
    reinforce_pp_baseline,
    rloo,
    sapo,
)
from rlreason.objective.spec import ObjectiveSpec

PRESETS: Mapping[str, ObjectiveSpec] = MappingProxyType(
    {
        "cispo": cispo.SPEC,
        "dapo": dapo.SPEC,
        "dr_grpo": dr_grpo.SPEC,
        "grpo": grpo.SPEC,
        "gspo": gspo.SPEC,
        "lite_ppo": lite_ppo.SPEC,
        "maxrl": maxrl.SPEC,
        "r1": r1.SPEC,
        "reinforce_pp": reinforce_pp.SPEC,
        "reinforce_pp_baseline": reinforce_pp_baseline.SPEC,
        "rloo": rloo.SPEC,
        "sapo": sapo.SPEC,
    }
)


def expand(value: object) -> object:
    """A recipe's ``objective``: ``"dapo"``, or ``{ preset = "dapo", clip_high = 0.3 }``, as the fields of a spec.

    Raises ValueError for a preset that does not exist. Anything else passes unchanged.
    """
    if isinstance(value, str):
        return preset(value)
    if isinstance(value, dict) and "preset" in value:
        changes = dict(value)
        return {**asdict(preset(changes.pop("preset"))), **changes}
    return value


def preset(name: object) -> ObjectiveSpec:
    """The preset ``name``. Raises ValueError with the known ones."""
    if not isinstance(name, str) or name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}{nearest(str(name), PRESETS)}; known: {', '.join(PRESETS)}")
    return PRESETS[name]
