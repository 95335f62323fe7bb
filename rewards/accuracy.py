"""``accuracy``: is the answer right? Dispatches on ``Problem.verifier``."""

from __future__ import annotations

from rlreason.rewards.registry import resolve_verifier, reward
from rlreason.types import Completion, Problem


@reward("accuracy")
def accuracy(problem: Problem, completion: Completion) -> object:
    """1 for a right answer, 0 for a wrong or missing one, None where the check could not tell (DeepSeek-R1,
    arXiv 2501.12948, section 2.2.2: accuracy rewards)."""
    return resolve_verifier(problem.verifier).function(problem, completion)
