"""One part of the recipe's ``[reward]`` table: a reward with its weight, and where and when it counts.

``{weight = 0.5, gate = "accuracy", sources = ["gsm8k"], schedule = [[0, 1], [200, 0]], limit = 30}``
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from rlreason.rewards.environment import from_option
from rlreason.rewards.registry import Reward, check_options, resolve, resolve_verifier
from rlreason.types import Problem

#: Keys of a part that are not options of its function.
KEYS = frozenset({"weight", "gate", "sources", "schedule", "seconds", "memory_mb"})


@dataclass(frozen=True, slots=True, kw_only=True)
class MixPart:
    """Example: ``MixPart(name="overlong", weight=0.5, options=(("buffer", 16), ("max_tokens", 48)))``."""

    #: In metrics and details; of a plug-in file without its folders.
    name: str
    weight: float
    options: tuple[tuple[str, object], ...] = ()
    #: What the registry looks up, where it isn't ``name``.
    spec: str = ""
    #: The part that must be right for this one to count; "" for none.
    gate: str = ""
    #: Source or data set of a problem -> factor of the weight; elsewhere the part does not count. Empty: counts for
    #: all.
    sources: tuple[tuple[str, float], ...] = ()
    #: (step, factor of the weight), with straight lines between. Empty: 1.
    schedule: tuple[tuple[int, float], ...] = ()
    #: Limits of one completion, in place of what the function declares and of the run's. No limit of memory: 0.
    seconds: float | None = None
    memory_mb: int | None = None

    @property
    def reward(self) -> Reward:
        """The function behind it."""
        return resolve(self.spec or self.name)

    @property
    def is_accuracy(self) -> bool:
        """Whether it asks each problem's own verifier."""
        return self.name == "accuracy"

    def entry(self, problem: Problem) -> Reward:
        """What is run for ``problem``: of accuracy, its verifier. Raises ValueError where there is none of its name."""
        return resolve_verifier(problem.verifier) if self.is_accuracy else self.reward

    def applies(self, problem: Problem) -> bool:
        """Whether it counts for ``problem``."""
        return not self.sources or self._source_factor(problem) is not None

    def weight_of(self, problem: Problem, step: int) -> float:
        """What its score is multiplied with."""
        if not self.sources and not self.schedule:
            return self.weight
        factor = self._source_factor(problem) if self.sources else 1.0
        return self.weight * (0.0 if factor is None else factor) * _between(self.schedule, step)

    def _source_factor(self, problem: Problem) -> float | None:
        known = dict(self.sources)
        return known.get(problem.source, known.get(problem.data_set))


def _between(points: Sequence[tuple[int, float]], step: int) -> float:
    if not points:
        return 1.0
    if step <= points[0][0]:
        return points[0][1]
    for (first, low), (last, high) in pairwise(points):
        if step < last:
            return low + (high - low) * (step - first) / (last - first)
    return points[-1][1]


def read_part(key: str, value: object, label: str, spec: str) -> MixPart:
    """A part as the table has it. ``label``: its name in metrics; ``spec``: what is loaded. Raises ValueError."""
    given = dict(value) if isinstance(value, Mapping) else {"weight": value}
    if "weight" not in given:
        raise ValueError(f"reward.{key}: no weight; write {{weight = 1.0, ...}}")
    options = {name: from_option(one) for name, one in given.items() if name not in KEYS}
    seconds, memory = given.get("seconds"), given.get("memory_mb")
    part = MixPart(
        name=label,
        weight=_number(given["weight"], f"reward.{key}: the weight"),
        options=tuple(sorted(options.items())),
        spec="" if spec == label else spec,
        gate=_gate(key, given.get("gate", "")),
        sources=_sources(key, given["sources"]) if "sources" in given else (),
        schedule=_schedule(key, given["schedule"]) if "schedule" in given else (),
        seconds=None if seconds is None else _positive(seconds, f"reward.{key}: seconds"),
        memory_mb=None if memory is None else int(_number(memory, f"reward.{key}: memory_mb")),
    )
    check_options(part.reward, dict(part.options))
    return part


def _number(value: object, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{what} must be a number, not {value!r}")
    return float(value)


def _positive(value: object, what: str) -> float:
    number = _number(value, what)
    if number <= 0:
        raise ValueError(f"{what} must be more than 0, not {value!r}")
    return number


def _gate(key: str, value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"reward.{key}: gate must be the name of another part, not {value!r}")
    return value


def _sources(key: str, value: object) -> tuple[tuple[str, float], ...]:
    what = f"reward.{key}: sources"
    if isinstance(value, Mapping) and value:
        return tuple((str(name), _number(one, f"{what}.{name}")) for name, one in value.items())
    if isinstance(value, (list, tuple)) and value and all(isinstance(one, str) for one in value):
        return tuple((str(one), 1.0) for one in value)
    raise ValueError(
        f'{what} must be a list of names, such as ["gsm8k"], or {{gsm8k = 1.0, math = 0.5}}, not {value!r}'
    )


def _schedule(key: str, value: object) -> tuple[tuple[int, float], ...]:
    what = f"reward.{key}: schedule"
    pairs = value if isinstance(value, (list, tuple)) else ()
    if not pairs or any(not isinstance(one, (list, tuple)) or len(one) != 2 for one in pairs):
        raise ValueError(f"{what} must be points [step, factor], such as [[0, 1.0], [200, 0.0]], not {value!r}")
    points = tuple((int(_number(step, what)), _number(factor, what)) for step, factor in pairs)
    if any(second[0] <= first[0] for first, second in pairwise(points)):
        raise ValueError(f"{what}: steps must rise, not {value!r}")
    return points
