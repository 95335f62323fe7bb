"""The Python API: a run from a script of ten lines or a notebook cell, over the pipeline that recipes use.

A call makes a recipe in memory and runs it: ``grpo(model, problems, reward=fn, steps=100)`` is one [[stage]] of kind
grpo. What the call was given and a recipe can only name is put into the run directory's folder ``given``: problems as
JSONL, a model of one's own as a Hugging Face folder. So the run can be resumed, evaluated and reported like any other.

This file imports neither torch nor transformers.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console

from rlreason import given
from rlreason.config import (
    DataConfig,
    DistillStage,
    GrpoStage,
    OptimizerConfig,
    Recipe,
    RejectStage,
    Section,
    SftStage,
    load,
    locate,
)
from rlreason.config.errors import explain
from rlreason.errors import UsageError, nearest
from rlreason.evaluation.request import EvalRequest
from rlreason.given import Problems, Reward
from rlreason.run.directory import GIVEN
from rlreason.types import EvalReport, RewardResult

__all__ = ["Result", "distill", "evaluate", "grpo", "load_recipe", "run_recipe", "score", "sft"]

#: Folder or hub id; a [policy] table for random weights; or (model, tokenizer) of transformers.
Model = str | Path | Mapping[str, Any] | tuple[Any, Any]
#: Defaults of keys that a recipe must name.
_NEEDED: Mapping[str, Mapping[str, object]] = {
    "grpo": {"problems_per_step": 8, "max_tokens": 256},
    "reject": {"max_tokens": 256},
    "sft": {},
    "distill": {},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a run left. Example: ``Result(folder=Path("runs/grpo-20261129-221500"), stage="grpo")``."""

    #: The run directory.
    folder: Path
    #: The stage that trained last.
    stage: str

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One row a step of the stage: ``step``, ``loss``, ``reward/mean``, … (docs/run_directory.md names them all).

        ``pandas.DataFrame(result.metrics)`` is a table of them.
        """
        lines = (self._stage_folder() / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def curve(self, name: str) -> list[float | None]:
        """One metric over the steps, such as "reward/mean"; None where a step has none. Raises UsageError for a name
        that no step has."""
        rows = self.metrics
        if not any(name in row for row in rows):
            names = sorted({key for row in rows for key in row})
            raise UsageError(f"no metric {name!r}{nearest(name, names)}; there are: {', '.join(names)}")
        return [row.get(name) for row in rows]

    @property
    def model(self) -> Path:
        """The trained model: a Hugging Face folder, which transformers and vLLM load."""
        return self._stage_folder() / "checkpoint"

    @property
    def report(self) -> Path:
        """One self-contained HTML file."""
        return self.folder / "report.html"

    def load(self) -> tuple[Any, Any]:
        """(model, tokenizer) of transformers."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        return AutoModelForCausalLM.from_pretrained(self.model), AutoTokenizer.from_pretrained(self.model)

    def _stage_folder(self) -> Path:
        (folder,) = (self.folder / "stages").glob(f"[0-9][0-9]-{self.stage}")
        return folder


def grpo(
    model: Model,
    problems: Problems,
    *,
    reward: Reward = None,
    steps: int,
    out: str | Path | None = None,
    resume: bool = False,
    **keys: Any,
) -> Result:
    """Group-relative policy optimisation (arXiv 2402.03300).

    ``problems``: a list of dicts {prompt, answer} or of ``Problem``; or what a recipe's ``data.train`` names. A dict
    without an answer is judged by the reward, which finds its other columns in ``problem.reference``.

    ``reward``: a function (problem, completion) -> float, a name such as "accuracy" (the default), a list of these, or
    a dict of them with weights. A function of an importable module runs in killable worker processes; another, such as
    a notebook's, in a thread of this process, with the same verdicts.

    ``keys``: keys of the stage (``rlreason keys stage.grpo``), of its optimizer (lr=1e-5), of the recipe's data
    (system, answer_style, verifier), ``seed``, ``heldout`` (problems to measure with ``eval_every``), ``quiet``, and
    ``settings`` for any other by its dotted name: ``settings={"sampler.engine": "vllm"}``.

    Raises UsageError, a ValueError, before anything is trained for what can't be.
    """
    call = _Call(problems=problems, reward=reward, out=out, resume=resume, keys=keys)
    return call.run({"policy": model}, {"grpo": {"steps": steps}})


def sft(
    model: Model, problems: Problems, *, steps: int, out: str | Path | None = None, resume: bool = False, **keys: Any
) -> Result:
    """Supervised fine-tuning on demonstrations: dicts {prompt, completion}, {messages} that end with the assistant, or
    {prompt, solution, answer}. The rest is as in ``grpo``."""
    call = _Call(problems=problems, reward=None, out=out, resume=resume, keys=keys)
    return call.run({"policy": model}, {"sft": {"steps": steps}})


def distill(
    teacher: Model,
    student: Model,
    problems: Problems,
    *,
    steps: int,
    out: str | Path | None = None,
    resume: bool = False,
    **keys: Any,
) -> Result:
    """Draw from the teacher, keep what is verified correct, train the student on it: a stage of kind reject and one of
    kind distill. Keys go to the one that has them, those of both to both; the rest is as in ``grpo``."""
    count = {} if isinstance(problems, (str, Path)) else {"problems": len(problems)}
    call = _Call(problems=problems, reward=keys.pop("reward", None), out=out, resume=resume, keys=keys)
    return call.run({"policy": teacher, "student": student}, {"reject": count, "distill": {"steps": steps}})


def evaluate(
    model: Model | Result, problems: Problems | None = None, *, suite: str = "heldout", **keys: Any
) -> EvalReport:
    """Measure a model, a run directory ("runs/q:grpo") or a ``Result`` as `rlreason eval` does.

    ``problems``: as in ``grpo``; None where a suite or a run has its own. ``keys``: fields of ``EvalRequest``, such as
    samples, temperature, max_tokens, system, out.
    """
    from tempfile import TemporaryDirectory

    from rlreason.evaluation import evaluate_model

    _refuse_unknown(keys, list(EvalRequest.__dataclass_fields__), "evaluate")
    with TemporaryDirectory(prefix="rlreason-eval-") as folder:
        data = None if problems is None else given.write_problems(problems, Path(folder) / "problems.jsonl").where
        if isinstance(model, Result):
            place = f"{model.folder}:{model.stage}"
        elif isinstance(model, Mapping):
            raise UsageError("evaluate measures a model that is there: a folder, hub id, run or (model, tokenizer)")
        else:
            place = str(given.policy_table(model, Path(folder) / "model")["path"])
        if "out" in keys and keys["out"] is not None:
            keys["out"] = Path(keys["out"])
        request = EvalRequest(model=place, suites=(suite,), data=data, **keys)
        (report,) = evaluate_model(request, _console())
    return report


def score(
    responses: Sequence[str],
    references: Sequence[Any],
    *,
    verifier: str | Callable[..., object] = "math",
    timeout: float = 10.0,
) -> list[RewardResult]:
    """Judge texts as `rlreason score` does: one result a response, in order. ``references``: gold answers, lists of
    accepted ones, or mappings such as a program's tests."""
    if len(responses) != len(references):
        raise UsageError(f"score: {len(responses)} responses and {len(references)} references; give one for each")
    return given.score(responses, references, verifier, timeout)


def load_recipe(recipe: str | Path, *overrides: str) -> Recipe:
    """A shipped recipe by name, or a .toml file, with ``key=value`` overrides. Raises UsageError."""
    return load(locate(str(recipe)), overrides)


def run_recipe(
    recipe: str | Path, *overrides: str, out: str | Path | None = None, resume: bool = False, quiet: bool = False
) -> Result:
    """`rlreason run`: every stage of a recipe, and the result of the last that trains."""
    path = locate(str(recipe))
    return _run(load(path, overrides), path, out=None if out is None else Path(out), resume=resume, quiet=quiet)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """What ``grpo``, ``sft`` and ``distill`` share."""

    problems: Problems
    reward: Reward
    out: str | Path | None
    resume: bool
    keys: dict[str, Any]

    def run(self, models: Mapping[str, Model], stages: Mapping[str, Mapping[str, object]]) -> Result:
        """Make the recipe, and run it."""
        from rlreason.job import new_folder
        from rlreason.run.directory import refuse_used

        name = str(self.keys.pop("name", next(iter(stages)) if len(stages) == 1 else "distill"))
        quiet, settings = bool(self.keys.pop("quiet", False)), dict(self.keys.pop("settings", {}))
        heldout = self.keys.pop("heldout", None)
        seed = self.keys.pop("seed", 0)
        table: dict[str, Any] = {"name": name, "seed": seed, "stage": self._stages(stages)}
        table["data"] = {key: self.keys.pop(key) for key in list(self.keys) if key in DataConfig.model_fields}
        self._refuse_rest(stages)
        folder = new_folder(name) if self.out is None else Path(self.out)
        if not self.resume:
            refuse_used(folder)
        written = given.write_problems(self.problems, folder / GIVEN / "problems.jsonl")
        table["data"]["train"] = written.where
        if heldout is not None:
            table["data"]["heldout"] = given.write_problems(heldout, folder / GIVEN / "heldout.jsonl").where
        rewards = given.reward_table(self.reward, judges=written.judged_by_reward)
        table["reward"] = rewards.table
        if written.judged_by_reward:
            table["data"].setdefault("verifier", next(iter(rewards.table)))
        for key, model in models.items():
            table[key] = given.policy_table(model, folder / GIVEN / key)
        for key, value in settings.items():
            _set(table, key, value)
        return _run(_recipe(table), Path("recipe.toml"), folder, self.resume, quiet=quiet, local=rewards.local)

    def _stages(self, stages: Mapping[str, Mapping[str, object]]) -> list[dict[str, Any]]:
        """The [[stage]] tables, with the keys of the call that they have."""
        tables = []
        for kind, own in stages.items():
            fields = _FIELDS[kind].model_fields
            taken = {key: self.keys[key] for key in self.keys if key in fields and key != "optimizer"}
            table: dict[str, Any] = {"kind": kind, "name": _STAGE_NAMES[kind], **_NEEDED[kind], **own, **taken}
            if kind == "reject":
                table.setdefault("problems", 1000)
            if "optimizer" in fields:
                optimizer = {key: self.keys[key] for key in self.keys if key in OptimizerConfig.model_fields}
                table["optimizer"] = {**dict(self.keys.get("optimizer", {})), **optimizer}
            tables.append(table)
        return tables

    def _refuse_rest(self, stages: Mapping[str, object]) -> None:
        known = [key for kind in stages for key in _FIELDS[kind].model_fields if key not in {"kind", "name"}]
        known += [
            *OptimizerConfig.model_fields,
            *DataConfig.model_fields,
            "heldout",
            "seed",
            "settings",
            "name",
            "quiet",
        ]
        _refuse_unknown(self.keys, known, " and ".join(stages))


_FIELDS: Mapping[str, type[Section]] = {
    "grpo": GrpoStage,
    "sft": SftStage,
    "reject": RejectStage,
    "distill": DistillStage,
}
_STAGE_NAMES = {"grpo": "grpo", "sft": "sft", "reject": "traces", "distill": "distilled"}


def _refuse_unknown(keys: Mapping[str, object], known: Sequence[str], what: str) -> None:
    for key in keys:
        if key not in known:
            names = ", ".join(dict.fromkeys(known))
            raise UsageError(f"{what} has no {key!r}{nearest(key, known)}; there are: {names}")


def _set(table: dict[str, Any], key: str, value: object) -> None:
    """``_set(table, "stage.grpo.steps", 3)``."""
    *path, last = key.split(".")
    node: Any = table
    for part in path:
        if isinstance(node, list):
            found = [one for one in node if one["name"] == part]
            if not found:
                names = ", ".join(one["name"] for one in node)
                raise UsageError(f"settings {key!r}: no stage {part!r} (stages: {names})")
            node = found[0]
        else:
            node = node.setdefault(part, {})
    node[last] = value


def _recipe(table: dict[str, Any]) -> Recipe:
    try:
        return Recipe.model_validate(table)
    except ValidationError as error:
        raise UsageError(explain(error, table, Recipe)) from error


def _run(
    recipe: Recipe, path: Path, out: Path | None, resume: bool, *, quiet: bool = False, local: bool = False
) -> Result:
    from rlreason.job import JobOptions, run_job
    from rlreason.run.interrupt import Interrupted

    options = JobOptions(folder=out, command="python", resume=resume, local_rewards=local)
    try:
        report = run_job(recipe, path, options, _console(quiet=quiet))
    except Interrupted as error:
        raise KeyboardInterrupt("; ".join(getattr(error, "__notes__", [])) or str(error)) from None
    trained = [stage.name for stage in recipe.stage if isinstance(stage, (GrpoStage, SftStage, DistillStage))]
    return Result(folder=report.parent, stage=trained[-1] if trained else recipe.stage[-1].name)


def _console(*, quiet: bool = False) -> Console:
    """Bars on a terminal, plain lines elsewhere: a notebook's cell would keep every frame of a bar."""
    return Console(highlight=False, quiet=quiet, force_jupyter=False, force_terminal=sys.stdout.isatty())
