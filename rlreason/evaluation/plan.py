"""From what `rlreason eval` was asked to recipes that say it: an evaluation is an eval stage like those of a run."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from rlreason.config import (
    ClusterConfig,
    DataConfig,
    EndpointConfig,
    EvalStage,
    PolicyConfig,
    Recipe,
    SamplerConfig,
    TrainingStage,
    load,
    stage_of,
)
from rlreason.config.errors import explain
from rlreason.data.rows import Columns
from rlreason.errors import UsageError, nearest
from rlreason.eval.suites import HELDOUT, PROTOCOLS, SUITES, Suite, find_suite
from rlreason.evaluation.request import EvalRequest, Measurement
from rlreason.run import manifest
from rlreason.run.directory import RunDirectory
from rlreason.tasks.procedural import TASKS

_Table = TypeVar("_Table", Recipe, DataConfig, EvalStage, SamplerConfig, ClusterConfig, EndpointConfig)

MANIFEST = "manifest.json"
#: Problems of tasks and of "heldout" that are asked where nobody says how many; of a suite that ends, all are.
PROBLEMS, ALL_PROBLEMS = 500, 1_000_000
MAX_TOKENS = 512


def measurements(request: EvalRequest) -> list[Measurement]:
    """One a suite, in order. Raises UsageError for suites, stages, options and folders that there are not."""
    suites = [find_suite(name) for name in request.suites or (HELDOUT,)]
    _check(request, suites)
    folder, _, stage = request.model.rpartition(":")
    if request.url is None and (Path(request.model) / MANIFEST).is_file():
        return [_of_run(request, Path(request.model), None, suite) for suite in suites]
    if request.url is None and (Path(folder) / MANIFEST).is_file() and folder:
        return [_of_run(request, Path(folder), stage, suite) for suite in suites]
    if request.url is None:
        _check_folder(request.model)
    return [_of_model(request, suite) for suite in suites]


def _check(request: EvalRequest, suites: list[Suite]) -> None:
    """Raise UsageError for options that don't go together."""
    names = [suite.name for suite in suites]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"suite {twice!r} is named twice")
    if request.data is not None and HELDOUT not in names and len(names) > 1:
        raise UsageError(f"--data is the problems of one suite, and {len(names)} are named: give one, or {HELDOUT!r}")
    if request.protocol is not None and request.protocol not in PROTOCOLS:
        known = ", ".join(PROTOCOLS)
        raise UsageError(f"no protocol {request.protocol!r}{nearest(request.protocol, PROTOCOLS)}; there is: {known}")
    for option, day in (("--since", request.since), ("--until", request.until)):
        if day is not None and not _is_day(day):
            raise UsageError(f"{option} {day}: a day is written as 2024-08-01")
        undated = next((suite.name for suite in suites if suite.date is None), None)
        if day is not None and undated is not None:
            raise UsageError(f"{option} is for suites whose problems have a day, and {undated!r} says of none")


def _is_day(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def _check_folder(model: str) -> None:
    """A mistyped folder is no hub id: nobody waits for the hub to say so."""
    path = Path(model)
    if path.is_dir():
        if not any((path / name).is_file() for name in ("config.json", "adapter_config.json")):
            raise UsageError(f"{model}: neither a run directory (no {MANIFEST}) nor a model's folder (no config.json)")
    elif path.is_file() and path.suffix == ".gguf":
        return
    elif model.count("/") != 1 or model.startswith((".", "/", "~")) or path.suffix == ".gguf":
        raise UsageError(f"no model {model!r}: there is no such folder or file, and a hub id is written owner/name")


def _of_run(request: EvalRequest, root: Path, name: str | None, suite: Suite) -> Measurement:
    """A model of a run: on what the run holds out, or on other data with the run's prompts, engine and limits."""
    recipe = load(root / "recipe.toml")
    run = RunDirectory(root, manifest.read(root / MANIFEST))
    model = _stage(recipe, run, name)
    like = _eval_stage(recipe, model)
    if request.data is not None or suite.name != HELDOUT:
        own = recipe.student if model == "student" else recipe.policy
        policy = own.path if model in {"policy", "student"} and own is not None else str(run.checkpoint(model))
        if policy is None:
            raise UsageError(
                f"{root}:{model} is a model from random weights: it has no folder to measure on other data"
            )
        settings = PolicyConfig(path=policy, dtype=recipe.policy.dtype)
        return _of_model(request, suite, recipe.model_copy(update={"policy": settings}), like, f"{root}:{model}")
    columns = {"--prompt-column": request.prompt_column, "--answer-column": request.answer_column}
    given = next((key for key, value in {**columns, "--answer-after": request.answer_after}.items() if value), None)
    if given is not None:
        raise UsageError(f"{given} says how --data is read: give --data too; a run reads its own data as before")
    data: dict[str, Any] = {
        "system": request.system,
        "answer_style": request.answer_style,
        "verifier": request.verifier,
    }
    data["prompt_template"] = request.prompt_template
    data["chat_template_kwargs"] = request.chat_template_kwargs
    kept = {key: value for key, value in data.items() if value is not None}
    asked = _engine(request, recipe)
    if kept and recipe.data.sets:
        raise UsageError(
            f"{root} has named sets, each with its own {', '.join(kept)}: give --data and the option, or none"
        )
    if kept:
        asked["data"] = _validated(DataConfig, {**recipe.data.model_dump(), **kept}, request)
    recipe = recipe.model_copy(update=asked)
    return Measurement(
        suite=suite,
        request=request,
        model=f"{root}:{model}",
        recipe=recipe,
        stage=_asked(like, request, suite),
        base=root,
        run=run,
        seed=recipe.seed if request.seed is None else request.seed,
    )


def _stage(recipe: Recipe, run: RunDirectory, name: str | None) -> str:
    """The model's name: as given, else of the last training stage that is done."""
    trained = [one.name for one in recipe.stage if isinstance(one, TrainingStage)]
    done = [one for one in trained if run.manifest.stage(one).status == "done"]
    if name is None:
        if not done:
            raise UsageError(f"{run.root}: no training stage is done yet; `rlreason resume {run.root}` goes on with it")
        return done[-1]
    if name in {"policy", "student"} and (name == "policy" or recipe.student is not None):
        return name
    stage = stage_of(name)
    if stage not in trained:
        names = ", ".join(trained)
        raise UsageError(f"{run.root} has no training stage {stage!r}{nearest(stage, trained)}; it has: {names}")
    if name != stage:
        run.checkpoint(name)
    elif name not in done:
        raise UsageError(f"{run.root}: stage {name!r} is not done, it is {run.manifest.stage(name).status}")
    return name


def _eval_stage(recipe: Recipe, model: str) -> EvalStage:
    """The run's last eval stage that measures ``model``; without one, how its own stage evaluates it."""
    stages = [one for one in recipe.stage if isinstance(one, EvalStage)]
    found = [one for one in stages if model in one.models] or [one for one in stages if stage_of(model) in one.models]
    if found:
        return found[-1].model_copy(update={"models": (model,)})
    stage = next((one for one in recipe.stage if isinstance(one, TrainingStage) and one.name == stage_of(model)), None)
    if stage is None:  # the policy or student as it was, on what the first stage is measured on
        first = recipe.stage[0].name
        return EvalStage(kind="eval", name=first, models=(model,), problems=PROBLEMS, max_tokens=MAX_TOKENS)
    longest, asked = stage.longest_evaluated, stage.eval_problems
    return EvalStage(kind="eval", name=stage.name, models=(model,), problems=asked, max_tokens=longest)


def _of_model(
    request: EvalRequest, suite: Suite, like: Recipe | None = None, stage: EvalStage | None = None, name: str = ""
) -> Measurement:
    """A model on data of its own. ``like``: the recipe whose model, prompts and engine it takes."""
    own = suite.name == HELDOUT or HELDOUT not in request.suites
    data = request.data if request.data is not None and own else suite.data
    if data is None:
        raise UsageError(
            f"suite {suite.name!r} has no data of its own: give --data FILE, or a suite "
            f"({', '.join(one for one in SUITES if one != HELDOUT)}), or a run directory in place of the model"
        )
    style = request.answer_style or (suite.answer_style if like is None else like.data.answer_style)
    columns = Columns(prompt=request.prompt_column or suite.prompt, answer=request.answer_column or suite.answer)
    template = suite.prompt_template if like is None else like.data.prompt_template
    task = data if isinstance(data, str) and data in TASKS else None
    system = request.system if request.system is not None or like is None else like.data.system
    table: dict[str, Any] = {
        # Nothing is trained on, and a recipe names something: a task costs nothing, and holds out problems of its own.
        "train": task or "arithmetic",
        "heldout": None if task else data if isinstance(data, str) else {"any_of": data},
        "columns": Columns() if suite.convert else columns,
        "convert": suite.convert,
        "prompt_template": (template if request.prompt_template is None else request.prompt_template) or None,
        "answer_after": (suite.answer_after if request.answer_after is None else request.answer_after) or None,
        "verifier": request.verifier or suite.verifier,
        "system": system or None,
        "answer_style": style,
        "chat_template_kwargs": _template_options(request, like),
    }
    server = "server" if request.url is not None else "policy"
    ends = task is None and suite.name != HELDOUT
    count = ALL_PROBLEMS if ends else PROBLEMS if stage is None else stage.problems
    base = stage or EvalStage(
        kind="eval",
        name="eval",
        models=(server,),
        max_tokens=suite.max_tokens,
        samples_per_problem=suite.samples,
        temperature=suite.temperature,
        top_p=suite.top_p,
    )
    asked = _asked(base.model_copy(update={"models": (server,), "problems": count}), request, suite)
    policy = PolicyConfig() if request.url is not None else PolicyConfig(path=request.model)
    recipe = {
        "name": "eval",
        "policy": policy if like is None else like.policy,
        "data": _validated(DataConfig, table, request),
        "stage": [asked.model_dump()],
        **_engine(request, like),
    }
    return Measurement(
        suite=suite,
        request=request,
        model=name or request.model,
        recipe=_validated(Recipe, recipe, request),
        stage=asked,
        base=Path(),
        run=None,
        seed=request.seed or 0 if like is None or request.seed is not None else like.seed,
    )


def _template_options(request: EvalRequest, like: Recipe | None) -> Mapping[str, Any]:
    if request.chat_template_kwargs is not None:
        return request.chat_template_kwargs
    return {} if like is None else like.data.chat_template_kwargs


def _engine(request: EvalRequest, like: Recipe | None) -> dict[str, Any]:
    """The tables of the recipe that say what draws and what checks."""
    sampler = {} if like is None else like.sampler.model_dump()
    cluster = {} if like is None else like.cluster.model_dump()
    if request.engine is not None:
        sampler["engine"] = request.engine
    if request.workers is not None:
        cluster["reward_workers"] = request.workers
    endpoint = {} if like is None else {name: one.model_dump() for name, one in like.endpoint.items()}
    if request.url is not None:
        server = {"url": request.url, "model": request.model, "tokenizer": request.tokenizer}
        server["api"] = "chat" if request.tokenizer is None else "completions"
        endpoint["server"] = {**server, "api_key_env": request.api_key_env}
    return {
        "sampler": _validated(SamplerConfig, sampler, request),
        "cluster": _validated(ClusterConfig, cluster, request),
        "endpoint": {name: _validated(EndpointConfig, one, request) for name, one in endpoint.items()},
    }


def _asked(stage: EvalStage, request: EvalRequest, suite: Suite) -> EvalStage:
    """``stage`` with what the request says otherwise."""
    if request.protocol is not None:
        protocol = PROTOCOLS[request.protocol]
        drawn = {"temperature": protocol.temperature, "top_p": protocol.top_p, "max_tokens": protocol.max_tokens}
        stage = stage.model_copy(update={**drawn, "samples_per_problem": suite.r1_samples})
    fields: dict[str, Any] = {
        "problems": request.problems,
        "samples_per_problem": request.samples,
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
    }
    given = {key: value for key, value in fields.items() if value is not None}
    if "samples_per_problem" in given and "temperature" not in given and request.protocol is None:
        given["temperature"] = 0.0 if given["samples_per_problem"] == 1 else 1.0
    asked = _validated(EvalStage, {**stage.model_dump(), **given}, request)
    if asked.samples_per_problem > 1 and asked.temperature == 0:
        raise UsageError(f"at temperature 0 all {asked.samples_per_problem} samples are equal: give --temperature")
    return asked


def _validated(model: type[_Table], table: dict[str, Any], request: EvalRequest) -> _Table:
    try:
        return model.model_validate(table)
    except ValidationError as error:
        raise UsageError(f"eval {request.model}: {explain(error, table, model)}") from error
