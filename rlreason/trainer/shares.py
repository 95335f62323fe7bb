"""Which samples of a step go to which rank: about as many tokens each, completions of one prompt together.

Packed micro-batches compute a prompt once for all of its completions, so a group that is split pays for it twice.
"""

from __future__ import annotations

from collections.abc import Sequence

from rlreason.types import TrainingSample


def shares(samples: Sequence[TrainingSample], ranks: int) -> list[list[int]]:
    """Places of ``samples`` for each rank, in order; deterministic.

    Longest first to whoever has least (Graham 1969); a group larger than a rank's even share is cut.
    """
    even = sum(len(one.token_ids) for one in samples) / ranks
    parts = [part for group in _groups(samples) for part in _cut(group, samples, even)]
    sizes = [sum(len(samples[at].token_ids) for at in part) for part in parts]
    found: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for number in sorted(range(len(parts)), key=lambda one: (-sizes[one], one)):
        rank = min(range(ranks), key=lambda one: (loads[one], one))
        found[rank] += parts[number]
        loads[rank] += sizes[number]
    return [sorted(one) for one in found]


def _groups(samples: Sequence[TrainingSample]) -> list[list[int]]:
    found: dict[str, list[int]] = {}
    for at, one in enumerate(samples):
        found.setdefault(one.group_id or f"\0{at}", []).append(at)
    return list(found.values())


def _cut(group: list[int], samples: Sequence[TrainingSample], even: float) -> list[list[int]]:
    parts: list[list[int]] = []
    size = 0.0
    for at in group:
        length = len(samples[at].token_ids)
        if not parts or size + length > max(even, length):
            parts.append([])
            size = 0.0
        parts[-1].append(at)
        size += length
    return parts
