"""Counter-based random draws: what a token is drawn with depends on (seed, stream, problem, sample, position) alone.

So the batch a completion is drawn in, its order and the number of workers change nothing.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from rlreason.types import Request


def uniforms(seed: int, stream: str, problem_id: str, sample: int, count: int) -> npt.NDArray[np.float64]:
    """``count`` uniform numbers in [0, 1), one per token position (Philox 4x64, Salmon et al. 2011)."""
    digest = hashlib.blake2b(f"{seed}\x1f{stream}\x1f{problem_id}\x1f{sample}".encode(), digest_size=16).digest()
    key = np.frombuffer(digest, dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random(count)


def request_seed(seed: int, stream: str, problem_id: str) -> int:
    """A seed for engines that draw by themselves; sample i of the group takes this plus i. 62 bits."""
    digest = hashlib.blake2b(f"{seed}\x1f{stream}\x1f{problem_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 2


def name_of(request: Request) -> str:
    """The problem's name in its stream, which fixes the draws: of the second group of problem p17 it is "p17#2"."""
    return request.group_id.removeprefix(f"{request.params.stream}/")
