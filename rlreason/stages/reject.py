"""Rejection sampling: draw from a trained policy and keep what the verifier calls correct (arXiv 2501.12948, 2.3.3)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlreason.config import RejectStage, TraceFilters
from rlreason.run.interrupt import deferred
from rlreason.stages.context import Context, Recorder
from rlreason.stages.drawing import DrawnJournal, scored_groups
from rlreason.stages.rollout_log import log_groups
from rlreason.stages.rollouts import all_broken, broken_detail, verdict_shares
from rlreason.traces.rows import (
    DRAWS,
    KEPT,
    SCHEMA,
    LearntRow,
    Provenance,
    TraceRow,
    Turn,
    read_learnt,
    read_rows,
    row_file,
)
from rlreason.traces.sets import SetOptions, write_set
from rlreason.traces.sift import Ledger
from rlreason.types import Completion, Group, Message, Problem, Sampler, SamplingParams, StepReport, Verdict

TRACES = KEPT
#: Problems drawn between two progress lines.
CHUNK = 256
COUNTS = ("drawn", "solved", "kept")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """One kept completion. Example: ``Trace(problem=Problem(...), response="<think>…</answer>")``."""

    problem: Problem
    response: str
    #: It ended by itself; one that was cut off drew no end token.
    ended: bool = True


def keep(group: Group, limit: int) -> list[Completion]:
    """Distinct correct and finished completions of the group, in sampling order, at most ``limit``.

    Correct is what the verifier says, whatever another part of the reward does; in a reward without one, its verdict.
    """
    kept: dict[str, Completion] = {}
    for completion, reward in zip(group.completions_G, group.rewards_G, strict=True):
        if (reward.verified or reward.verdict) is Verdict.CORRECT and completion.finish_reason == "stop":
            kept.setdefault(completion.response, completion)
    return list(kept.values())[:limit]


def run_reject(stage: RejectStage, context: Context, sampler: Sampler, recorder: Recorder) -> None:
    """Sample ``stage.problems`` training problems and write the kept traces to traces.jsonl, chunk by chunk.

    A chunk under way goes on by problem, from the stage's journal. With ``filters``, every draw is written to
    draws.jsonl, and the traces are made of all of them at the end; what is kept is known only then.
    """
    progress = recorder.progress
    journal = DrawnJournal(path=context.run.stage_folder(stage.name) / "drawn.journal")
    counts = {name: int(str(progress.position[name])) if progress.position else 0 for name in COUNTS}
    starts = range(0, stage.problems, CHUNK)
    for chunk in range(progress.done, len(starts)):
        size = min(CHUNK, stage.problems - starts[chunk])
        problems = context.data.of(stage.name).train(stage.first_problem + starts[chunk], size)
        params = SamplingParams(
            samples_per_problem=stage.samples_per_problem,
            temperature=stage.temperature,
            top_p=stage.top_p,
            top_k=stage.top_k,
            max_tokens=stage.max_tokens,
            seed=context.recipe.seed,
            stream=f"{stage.name}/{chunk}",
        )
        groups = scored_groups(context.scorer, sampler, problems, params, journal)
        recorder.health.broke(broken_detail(groups))
        with deferred():
            if all_broken(groups):  # the stage stops; once its reward is mended, the chunk is scored anew
                journal.clear()
            _record_chunk(chunk, groups, counts, stage, context, recorder)
            progress.done, progress.position = chunk + 1, {**counts}
            recorder.save()
            journal.clear()
    if stage.filters is not None:
        ledger = _filter(stage, stage.filters, context)
        _record_set(ledger, len(starts), counts, stage, recorder)
    else:
        drawn, kept = _distinct(stage, context)
        context.run.tell(f"{stage.name}: {drawn:,} distinct problems drawn, traces of {kept:,} kept")


def _distinct(stage: RejectStage, context: Context) -> tuple[int, int]:
    """Problems, each once however often the stage went over the data: (all, those of which a trace was kept)."""
    source = context.data.of(stage.name)
    starts = range(0, stage.problems, CHUNK)
    parts = (source.train(stage.first_problem + start, min(CHUNK, stage.problems - start)) for start in starts)
    drawn = {problem.id for part in parts for problem in part}
    return len(drawn), len({str(row["problem_id"]) for row in context.run.rows(stage.name, TRACES)})


def _filter(stage: RejectStage, filters: TraceFilters, context: Context) -> Ledger:
    """Make the set of all draws: a pure function of them."""
    folder = context.run.stage_folder(stage.name)
    draws = folder / DRAWS
    options = SetOptions(filters=filters, keep_per_problem=stage.keep_per_problem, keep_rejected=stage.keep_rejected)
    with row_file(draws) as rows:
        ledger = write_set(rows, folder, options)
    for line in ledger.lines():
        context.run.tell(f"{stage.name}: {line}")
    return ledger


def _record_set(ledger: Ledger, step: int, counts: Mapping[str, int], stage: RejectStage, recorder: Recorder) -> None:
    """A last line of metrics: what the filters left. The health rules stop a stage that keeps nothing by it."""
    scalars = {
        "problems": float(counts["drawn"]),
        "kept": float(ledger.kept),
        "distinct/drawn": float(ledger.problems),
        "distinct/kept": float(ledger.problems_kept),
        **{f"stopped/{name}": float(count) for name, count in ledger.stopped.items()},
    }
    recorder.step(StepReport(stage=stage.name, kind=stage.kind, step=step, policy_version=0, scalars=scalars), steps=0)


def _record_chunk(
    chunk: int,
    groups: Sequence[Group],
    counts: dict[str, int],
    stage: RejectStage,
    context: Context,
    recorder: Recorder,
) -> None:
    """Write a chunk's traces, logged groups and metrics, and add it to ``counts``."""
    chosen = [(group, keep(group, stage.keep_per_problem)) for group in groups]
    for group, completions in chosen if stage.filters is None else ():
        for completion in completions:
            context.run.append(stage.name, TRACES, _row(group.problem, completion))
    if stage.filters is not None:
        lines = [json.loads(row.as_line()) for group in groups for row in rows_of(group, stage, context)]
        context.run.append_rows(stage.name, DRAWS, lines)
    log_groups(context, stage.name, chunk, groups)
    counts["drawn"] += len(groups)
    counts["solved"] += sum(bool(completions) for _, completions in chosen)
    counts["kept"] += sum(len(completions) for _, completions in chosen)
    tokens = sum(len(c.token_ids) for group in groups for c in group.completions_G)
    recorder.meter.drawn(groups)
    scalars = {
        "problems": float(counts["drawn"]),
        **({} if stage.filters is not None else {"kept": float(counts["kept"])}),
        "acceptance": counts["solved"] / counts["drawn"],
        "tokens": float(tokens),
        **verdict_shares(groups),
    }
    report = StepReport(stage=stage.name, kind=stage.kind, step=chunk, policy_version=0, scalars=scalars)
    recorder.step(report, steps=len(groups))


def _row(problem: Problem, completion: Completion) -> dict[str, object]:
    return {
        "problem_id": problem.id,
        "prompt": problem.prompt,
        "data_set": problem.data_set,
        "messages": [{"role": message.role, "content": message.content} for message in problem.messages],
        "response": completion.response,
    }


def rows_of(group: Group, stage: RejectStage, context: Context) -> list[TraceRow]:
    """Every completion of a scored group as a row."""
    problem, found = group.problem, []
    for draw, (completion, reward) in enumerate(zip(group.completions_G, group.rewards_G, strict=True)):
        thought = completion.response.partition("</think>")[0]
        share = len(thought) / max(len(completion.response), 1) if thought != completion.response else 0.0
        count = len(completion.token_ids)
        reference = problem.reference
        found.append(
            TraceRow(
                schema=SCHEMA,
                id=f"{group.group_id}/{draw:03d}",
                problem_id=problem.id,
                prompt=problem.prompt,
                messages=tuple(Turn(role=one.role, content=one.content) for one in problem.messages),
                data_set=problem.data_set,
                source=problem.source,
                tags=problem.tags,
                verifier=problem.verifier,
                reference=dict(reference) if isinstance(reference, Mapping) else reference,
                response=completion.response,
                token_ids=tuple(completion.token_ids.tolist()),
                finish_reason=completion.finish_reason,
                think_tokens=round(share * count),
                answer_tokens=count - round(share * count),
                verdict=str(reward.verified or reward.verdict),
                detail=reward.detail,
                provenance=_provenance(stage, context, completion, group.group_id, draw),
            )
        )
    return found


def _provenance(stage: RejectStage, context: Context, completion: Completion, group_id: str, draw: int) -> Provenance:
    parents = context.run.manifest.stage(stage.name).parents
    made = [entry.sha256 or "" for entry in context.run.manifest.stages if entry.name in parents]
    return Provenance(
        model=parents[0],
        weights_sha256=made[0] if made else "",
        policy_version=completion.policy_version_max,
        temperature=stage.temperature,
        top_p=stage.top_p,
        top_k=stage.top_k,
        max_tokens=stage.max_tokens,
        seed=context.recipe.seed,
        stream=group_id.rpartition("/")[0],
        draw=draw,
    )


def read_traces(folder: Path, which: str = "kept") -> Iterator[Trace]:
    """The traces that ``run_reject`` wrote into its stage folder; ``which``: see ``DistillStage``.

    Raises UsageError naming file, line and fix for what is none.
    """
    if which == "kept":
        path = folder / TRACES
        yield from map(_trace, read_learnt(path) if path.exists() else ())
        return
    for row in read_rows(folder / DRAWS):
        if which == "all" or (row.verdict == Verdict.WRONG and row.finish_reason == "stop"):
            yield _trace(row)


def _trace(row: LearntRow | TraceRow) -> Trace:
    problem = Problem(
        id=row.problem_id,
        prompt=row.prompt,
        verifier="",
        reference="",
        data_set=row.data_set,
        messages=tuple(Message(role=one.role, content=one.content) for one in row.messages),
    )
    return Trace(problem=problem, response=row.response, ended=row.finish_reason != "length")
