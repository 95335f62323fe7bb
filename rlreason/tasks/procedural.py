"""The procedural tasks by name. A new one is a file like ``arithmetic.py`` and a line here."""

from collections.abc import Callable, Mapping

from rlreason.errors import UsageError, nearest
from rlreason.tasks.arithmetic import arithmetic
from rlreason.tasks.countdown import countdown
from rlreason.tasks.python_functions import python_functions
from rlreason.tasks.small_functions import small_functions
from rlreason.tasks.task import Split, Task
from rlreason.tasks.word_problems import word_problems

__all__ = ["TASKS", "Split", "Task", "make_task"]

#: Name in a recipe -> constructor from (options, seed).
TASKS: Mapping[str, Callable[[Mapping[str, object], int], Task]] = {
    "arithmetic": arithmetic,
    "countdown": countdown,
    "python_functions": python_functions,
    "small_functions": small_functions,
    "word_problems": word_problems,
}


def make_task(name: str, options: Mapping[str, object], seed: int) -> Task:
    """The task called ``name``. Raises UsageError naming a wrong task or option, and what is allowed."""
    if name not in TASKS:
        raise UsageError(f"unknown task {name!r}{nearest(name, TASKS)} (allowed: {', '.join(TASKS)})")
    return TASKS[name](options, seed)
