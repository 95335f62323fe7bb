"""rlreason: R1-style reasoning training, from a 2-core laptop to a GPU cluster.

The Python API is here, and loaded when it is first used: ``rlreason.grpo``, ``sft``, ``distill``, ``evaluate``,
``score``, ``run_recipe``, ``load_recipe``, ``reward``, ``Problem`` (docs/python.md). Importing this package, or a room
such as ``rlreason.rewards``, loads neither torch nor ray nor vllm.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlreason.api import Result, distill, evaluate, grpo, load_recipe, run_recipe, score, sft
    from rlreason.errors import UsageError
    from rlreason.rewards.registry import reward
    from rlreason.types import Completion, Problem, RewardResult, Verdict

__version__ = "0.1.0"

__all__ = [
    "Completion",
    "Problem",
    "Result",
    "RewardResult",
    "UsageError",
    "Verdict",
    "__version__",
    "distill",
    "evaluate",
    "grpo",
    "load_recipe",
    "reward",
    "run_recipe",
    "score",
    "sft",
]

#: Name -> the module that has it.
_PLACES = {
    **dict.fromkeys(
        ("Result", "distill", "evaluate", "grpo", "load_recipe", "run_recipe", "score", "sft"), "rlreason.api"
    ),
    **dict.fromkeys(("Completion", "Problem", "RewardResult", "Verdict"), "rlreason.types"),
    "UsageError": "rlreason.errors",
    "reward": "rlreason.rewards.registry",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'rlreason' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
