"""Groups above samplers: their names, their requests, and completions that come in any order."""

from __future__ import annotations

from dataclasses import replace

import pytest
from policies import PROBLEMS, make_policy, open_pool, tokens

from rlreason.sampler.draw import name_of
from rlreason.sampler.groups import GroupBuilder, draw_groups, group_ids, requests_of
from rlreason.sampler.handles import InlineCluster
from rlreason.sampler.worker import RolloutWorker
from rlreason.types import Completion, SamplingParams

PARAMS = SamplingParams(samples_per_problem=3, max_tokens=8, seed=1, stream="eval/x")


def completion(text: str) -> Completion:
    return Completion(prompt_ids=(1,), token_ids=(2,), sampler_logprobs=None, text=text, finish_reason="stop")


def test_a_problem_that_comes_again_is_a_group_of_its_own() -> None:
    p, q = PROBLEMS[:2]
    odd = replace(p, id=f"{p.id}#2")
    ids = group_ids([p, q, p, odd, p], "s")
    assert ids[:3] == [f"s/{p.id}", f"s/{q.id}", f"s/{p.id}#3"]
    assert len(set(ids)) == 5
    requests = requests_of([p, p], PARAMS)
    assert [name_of(one) for group in requests for one in group] == [p.id] * 3 + [f"{p.id}#2"] * 3
    assert [one.sample for one in requests[0]] == [0, 1, 2]
    assert len({one.key for group in requests for one in group}) == 6


def test_completions_are_put_in_order() -> None:
    builder = GroupBuilder()
    first, second = requests_of(PROBLEMS[:2], PARAMS)
    builder.expect(first)
    builder.expect(second)
    assert builder.add(first[2], completion("c")) is None
    assert builder.add(second[0], completion("x")) is None
    assert builder.add(first[0], completion("a")) is None
    group = builder.add(first[1], completion("b"))
    assert group is not None
    assert [one.text for one in group.completions_G] == ["a", "b", "c"]
    assert (group.group_id, group.problem) == (first[0].group_id, PROBLEMS[0])
    with pytest.raises(AssertionError, match="came twice"):
        builder.add(second[0], completion("x"))


def test_groups_come_in_order_and_what_is_done_is_left_out() -> None:
    policy = make_policy("qwen3")
    problems = [*PROBLEMS[:5], PROBLEMS[0], PROBLEMS[1]]
    whole = list(draw_groups(open_pool(policy, InlineCluster(RolloutWorker), workers=3), problems, PARAMS))
    assert [group.group_id for group in whole] == group_ids(problems, PARAMS.stream)
    assert len(set(tokens([whole[0], whole[5]]))) > 3  # the same problem, drawn apart
    done = {whole[0].group_id, whole[5].group_id, whole[3].group_id}
    rest = list(draw_groups(open_pool(policy, InlineCluster(RolloutWorker), workers=3), problems, PARAMS, done=done))
    assert [group.group_id for group in rest] == [group.group_id for group in whole if group.group_id not in done]
    assert tokens(rest) == tokens([group for group in whole if group.group_id not in done])
    assert list(draw_groups(open_pool(policy, InlineCluster(RolloutWorker)), [], PARAMS)) == []


def test_the_same_worker_draws_the_same_whatever_was_drawn_before() -> None:
    policy = make_policy("qwen3")
    handed: list[tuple[int, list[str]]] = []

    class Noting(RolloutWorker):
        def advance(self, jobs, seconds, steps=None):  # type: ignore[no-untyped-def]
            handed.append((id(self), [job.key for job in jobs]))
            return super().advance(jobs, seconds, steps)

    sampler = open_pool(policy, InlineCluster(Noting))
    list(draw_groups(sampler, PROBLEMS[:3], PARAMS))
    first = list(handed)
    list(draw_groups(sampler, PROBLEMS[3:4], replace(PARAMS, stream="other")))
    handed.clear()
    list(draw_groups(sampler, PROBLEMS[:3], PARAMS))
    assert handed == first
