"""What a Python call hands over (problems, rewards, models) in the form that a recipe can name."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from rlreason.errors import UsageError
from rlreason.local_pool import LocalPool
from rlreason.rewards import registry
from rlreason.rewards.mix import RewardMix
from rlreason.rewards.pool import Pool
from rlreason.scorer import as_reward
from rlreason.types import Completion, Problem, Reference, RewardResult

Problems = str | Path | Sequence[Problem | Mapping[str, Any]]
RewardFunction = Callable[..., object]
Reward = None | str | RewardFunction | Sequence[str | RewardFunction] | Mapping[str | RewardFunction, float]
#: Columns that rows of problems may have; others go to the reward.
_ANSWERS = ("answer", "tests")
_DEMONSTRATIONS = ("completion", "solution", "messages")


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenProblems:
    """Problems as a recipe names them."""

    where: str
    #: Nothing says what is right: the reward decides.
    judged_by_reward: bool = False


def write_problems(problems: Problems, path: Path) -> WrittenProblems:
    """Problems as JSONL at ``path``; what a recipe can name already stays as it is.

    Raises UsageError naming the item that can't be.
    """
    if isinstance(problems, (str, Path)):
        return WrittenProblems(where=str(problems))
    if not problems:
        raise UsageError("problems: the list is empty")
    rows = [_row(number, problem) for number, problem in enumerate(problems)]
    unjudged = [row for row in rows if not any(key in row for key in (*_ANSWERS, *_DEMONSTRATIONS))]
    if unjudged and len(unjudged) < len(rows):
        number = rows.index(unjudged[0])
        raise UsageError(f"problems[{number}] has no answer and others have one: give all of them one, or none")
    for row in unjudged:
        columns = {key: value for key, value in row.items() if key not in {"id", "prompt"}}
        row["answer"] = columns or {"prompt": row["prompt"]}
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    except (TypeError, ValueError) as error:
        raise UsageError(f"problems: a value can't be written as JSON: {error}") from error
    return WrittenProblems(where=str(path.absolute()), judged_by_reward=bool(unjudged))


def _row(number: int, problem: Problem | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(problem, Mapping):
        row = {str(key): value for key, value in problem.items()}
        if "prompt" not in row and "messages" not in row:
            raise UsageError(f"problems[{number}] has no 'prompt'; it has: {', '.join(row) or 'nothing'}")
        if not isinstance(row.get("prompt", ""), str):
            row["messages"] = row.pop("prompt")
        return row
    if not isinstance(problem, Problem):
        raise UsageError(f"problems[{number}]: give a dict or a Problem, not a {type(problem).__name__}")
    reference = problem.reference
    row = {"id": problem.id, "source": problem.source}
    row["tests" if isinstance(reference, Mapping) and problem.verifier == "code" else "answer"] = (
        list(reference)
        if isinstance(reference, tuple)
        else dict(reference)
        if isinstance(reference, Mapping)
        else reference
    )
    if problem.messages:
        row["messages"] = [{"role": one.role, "content": one.content} for one in problem.messages]
    else:
        row["prompt"] = problem.prompt
    if problem.thought is not None:
        row["solution"] = problem.thought
    elif problem.answer is not None:  # the assistant's whole turn
        row["completion"] = problem.answer
    return {key: value for key, value in row.items() if value not in ("", None)}


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenRewards:
    """A recipe's [reward] table, and whether a function in it is known to this process alone."""

    table: dict[str, float]
    local: bool


def reward_table(reward: Reward, *, judges: bool) -> GivenRewards:
    """Rewards by the names that a recipe has for them. ``judges``: the first is the problems' verifier too.

    Raises UsageError for what is no reward, or where there is none to judge.
    """
    if reward is None:
        if judges:
            raise UsageError("problems have no answer: give reward=function to judge completions, or an 'answer' each")
        return GivenRewards(table={"accuracy": 1.0}, local=False)
    weighted: dict[Any, float]
    if isinstance(reward, Mapping):
        weighted = dict(reward)
    elif isinstance(reward, (list, tuple)):
        weighted = dict.fromkeys(reward, 1.0)
    else:
        weighted = {reward: 1.0}
    if not weighted:
        raise UsageError("reward: no function in it")
    table: dict[str, float] = {}
    local = False
    for one, weight in weighted.items():
        name, own = (
            (one, not registry.travels(one)) if isinstance(one, str) else _name(one, table, judges=judges and not table)
        )
        table[name] = weight
        local = local or own
    return GivenRewards(table=table, local=local)


def _name(function: RewardFunction, taken: Container[str] = (), *, judges: bool) -> tuple[str, bool]:
    """(the function's name for a recipe, whether only this process knows it)."""
    if not callable(function):
        raise UsageError(f"reward: {function!r} is neither a function nor a name")
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    if module and importable(module) and name.isidentifier() and getattr(sys.modules[module], name, None) is function:
        return f"{module}:{name}", False
    label = "".join(letter if letter.isalnum() else "_" for letter in getattr(function, "__name__", "")).strip("_")
    label = label or "reward"
    while label in taken or (label in registry.reward_names() and label not in _OURS):
        label += "_"
    registry.register_local(label, function if name else _named(function), verifier=judges)
    _OURS.add(label)
    return label, True


#: Names that were given to functions of this process.
_OURS: set[str] = set()


def _named(function: RewardFunction) -> RewardFunction:
    """A callable object or a partial as a function."""

    def call(problem: Problem, completion: Completion) -> object:
        return function(problem, completion)

    return call


def importable(module: str) -> bool:
    """Whether another Python process with the same path finds ``module``: no script, no notebook."""
    return module not in {"__main__", "__mp_main__"} and PathFinder.find_spec(module.partition(".")[0]) is not None


def policy_table(model: Any, folder: Path) -> dict[str, Any]:
    """A [policy] table: of a folder or hub id, of a table, or of (model, tokenizer), which is saved in ``folder``.

    The caller's model is left as it is: what trains is loaded from ``folder``.
    """
    if isinstance(model, (str, Path)):
        return {"path": str(model)}
    if isinstance(model, Mapping):
        return dict(model)
    if not isinstance(model, tuple) or len(model) != 2:
        raise UsageError(
            f"model: give a folder, a hub id, a [policy] table, or (model, tokenizer), not a {type(model).__name__}"
        )
    if not folder.exists():
        folder.mkdir(parents=True)
        for part in model:
            part.save_pretrained(folder)
    return {"path": str(folder.absolute())}


def score(
    responses: Sequence[str], references: Sequence[Any], verifier: str | RewardFunction, timeout: float
) -> list[RewardResult]:
    """See ``rlreason.score``."""
    name, local = (verifier, False) if isinstance(verifier, str) else _name(verifier, judges=True)
    try:
        registry.resolve_verifier(name)
    except ValueError as error:
        raise UsageError(str(error)) from None
    job = functools.partial(_judge, RewardMix.from_table({"accuracy": 1.0}), name)
    pool: Pool | LocalPool = LocalPool(job, timeout=timeout) if local else Pool(job, timeout=timeout)
    try:
        answers = pool.submit_all((text, _frozen(gold)) for text, gold in zip(responses, references, strict=True))
        return [as_reward(answer.result()) for answer in answers]
    finally:
        pool.close()


def _frozen(reference: Any) -> Reference:
    return tuple(reference) if isinstance(reference, list) else reference


def _judge(mix: RewardMix, verifier: str, item: tuple[str, Reference]) -> RewardResult:
    text, reference = item
    problem = Problem(id="", prompt="", verifier=verifier, reference=reference)
    return mix(problem, Completion.from_text(text))
