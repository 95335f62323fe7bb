"""`rlreason doctor numerics`: tokens drawn by the engine that a run would have, and scored as a trainer would."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rlreason.errors import UsageError

if TYPE_CHECKING:
    from rlreason.diagnose.numerics import Band


@dataclass(frozen=True, slots=True, kw_only=True)
class NumericsRequest:
    """What is asked. ``data``: a file or named set whose problems are prompts; None: arithmetic."""

    model: str
    data: str | None = None
    engine: str = "auto"
    dtype: str = "auto"
    problems: int = 16
    samples: int = 4
    max_tokens: int = 256
    temperature: float = 1.0
    seed: int = 0


def numerics(request: NumericsRequest) -> list[str]:
    """Draw, score, and say what differs, as lines. Raises UsageError for a model or an engine that is not there."""
    from pydantic import ValidationError

    from rlreason.check import check
    from rlreason.config import Recipe
    from rlreason.config.errors import explain
    from rlreason.diagnose.numerics import measure
    from rlreason.job import open_samplers
    from rlreason.policy.loading import read_config
    from rlreason.policy.model import default_device, resolve_dtype
    from rlreason.policy.policies import PolicySource
    from rlreason.routing import experts_in
    from rlreason.sampler.groups import draw_groups
    from rlreason.types import SamplingParams

    experts = bool(experts_in(read_config(request.model).to_dict()))
    stage = {
        "kind": "grpo",
        "name": "numerics",
        "steps": 1,
        "problems_per_step": request.problems,
        "samples_per_problem": max(2, request.samples),
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "report_experts": experts,
    }
    tables = {
        "name": "numerics",
        "seed": request.seed,
        "policy": {"path": request.model, "dtype": request.dtype},
        "data": {"train": request.data or "arithmetic"},
        "sampler": {"engine": request.engine},
        "stage": [stage],
    }
    try:
        recipe = Recipe.model_validate(tables)
    except ValidationError as error:
        raise UsageError(f"rlreason doctor numerics: {explain(error, tables, Recipe)}") from error
    checked = check(recipe, Path.cwd())
    device = default_device()
    policy = PolicySource(path=request.model).load(resolve_dtype(checked.recipe.policy.dtype, device), device)
    params = SamplingParams(
        samples_per_problem=request.samples,
        temperature=request.temperature,
        max_tokens=request.max_tokens,
        seed=request.seed,
        stream="numerics",
    )
    with open_samplers(checked) as samplers:
        sampler = samplers.open(policy)
        groups = list(draw_groups(sampler, checked.data.of("numerics").train(0, request.problems), params))
        engine = samplers.describe()
    completions = [one for group in groups for one in group.completions_G]
    try:
        bands = measure(policy.model, completions, request.temperature)
    except ValueError as error:
        raise UsageError(f"{request.model}: {error}") from error
    return [f"{request.model}: {engine}, {policy.dtype}, temperature {request.temperature:g}", *said(bands, experts)]


def said(bands: Sequence[Band], experts: bool) -> list[str]:
    """The table and what it means. The first of ``bands`` is the whole."""
    from rlreason.diagnose.numerics import HEALTHY_DENSE, HEALTHY_EXPERTS, is_healthy

    lines = [f"{'depth':>16} {'tokens':>8} {'v1':>10} {'± error':>9} {'v2':>9} {'largest':>9} {'off by 10 %':>12}"]
    if bands[0].agree is not None:
        lines[0] += f" {'same experts':>13}"
    for one in bands:
        end = "" if one.end is None else str(one.end - 1)
        depth = "all" if one is bands[0] else f"{one.first} to {end}" if end else f"{one.first} and more"
        line = f"{depth:>16} {one.tokens:>8} {one.v1:>10.2e} {one.error:>9.1e} {one.v2:>9.2e} {one.largest:>9.2e}"
        lines.append(line + f" {one.off:>12.1%}" + ("" if one.agree is None else f" {one.agree:>13.1%}"))
    limit, kind = (HEALTHY_EXPERTS, "a mixture of experts") if experts else (HEALTHY_DENSE, "a dense model")
    ill = [one for one in bands if not is_healthy(one, experts=experts)]
    band = f"v1 and v2 up to {limit:g} nats a token are healthy for {kind} (tinker-cookbook)"
    lines.append(f"above the healthy band: {band}; docs/mismatch.md says what to do" if ill else f"healthy: {band}")
    return lines
