"""Health rules on numbers by hand: each speaks just past its limit, is silent just before it, and speaks once."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from rlreason.config import HealthConfig
from rlreason.diagnose.health import Finding, StageHealth
from rlreason.diagnose.rules import WARNINGS, History
from rlreason.display import RichDisplay
from rlreason.errors import HealthStop
from rlreason.stages.evaluate import accuracy_text
from rlreason.stages.rollouts import summarize, verdict_shares
from rlreason.types import Completion, Group, Interval, Problem, RewardResult, StepReport, Verdict

LIMITS = HealthConfig()


def health(kind: str = "grpo", limits: HealthConfig = LIMITS, moe: bool = False) -> StageHealth:
    return StageHealth(stage="s", limits=limits, history=History(kind=kind, moe=moe))


def steps(watch: StageHealth, rows: Sequence[Mapping[str, float]]) -> list[Finding]:
    found: list[Finding] = []
    for step, scalars in enumerate(rows):
        found += watch.step(
            StepReport(stage="s", kind=watch.history.kind, step=step, policy_version=0, scalars=scalars)
        )
    return found


def rules(rows: Sequence[Mapping[str, float]], moe: bool = False, limits: HealthConfig = LIMITS) -> list[str]:
    return [one.rule for one in steps(health(moe=moe, limits=limits), rows)]


def verdicts(broken: float = 0.0, timed_out: float = 0.0) -> dict[str, float]:
    return {"verdict/broken": broken, "verdict/timed_out": timed_out}


def heldout(broken: float) -> dict[str, float]:
    return {"heldout/broken": broken, "heldout/timed_out": 0.0}


def lengths(values: Sequence[float]) -> list[dict[str, float]]:
    return [{"length/mean": value} for value in values]


def entropies(values: Sequence[float]) -> list[dict[str, float]]:
    return [{"entropy": value} for value in values]


def norms(values: Sequence[float]) -> list[dict[str, float]]:
    return [{"grad_norm": value} for value in values]


def gradient(norm: float, tokens: float = 40.0, kept: float = 4.0) -> dict[str, float]:
    return {"grad_norm": norm, "trained_tokens": tokens, "groups/kept": kept}


def measured(accuracy: float, reward: float, count: int = 1000) -> dict[str, float]:
    return {"accuracy/heldout": accuracy, "reward/mean": reward, "heldout/verified": float(count)}


def test_the_end_of_a_router_warm_up_is_no_spike() -> None:
    """From there on the norm is of all parameters, before of the routers alone; what comes later is compared again."""
    warm_up, after = [0.01] * 20, [9.0, 5.0, 5.0, 5.0, 5.0]
    for routers_alone, spoken in ((20, [25]), (0, [20])):
        watch = health(kind="sft")
        watch.history.router_steps = routers_alone
        found = steps(watch, norms([*warm_up, *after, 99.0]))
        assert [one.step for one in found if one.rule == "gradient_spike"] == spoken


def test_a_supervised_step_without_a_gradient() -> None:
    """Its tokens have another name; the first step of distillation from the policy itself has none by right."""
    row = {"grad_norm": 0.0, "tokens": 12.0}
    assert [one.rule for one in steps(health(kind="sft"), [row, row])] == ["no_gradient"]
    assert not steps(health(kind="opd"), [{"grad_norm": 0.0, "trained_tokens": 12.0}])


@pytest.mark.parametrize(
    ("rule", "speaks", "silent"),
    [
        # 6 % and 5 % are 11 % of the completions; 5 % and 5 % are the limit
        ("no_verdict", [verdicts(0.06, 0.05)], [verdicts(0.05, 0.05)]),
        # one bad step of ten is 3 %
        ("no_verdict", [verdicts(0.3)], [verdicts()] * 9 + [verdicts(0.3)]),
        ("no_verdict", [heldout(0.2)], [heldout(0.1)]),
        # 1 of 8 and 2 of 8 are 19 %; 2 of 8 each are the limit
        (
            "groups_kept",
            [{"groups/total": 8.0, "groups/kept": 1.0}, {"groups/total": 8.0, "groups/kept": 2.0}],
            [{"groups/total": 8.0, "groups/kept": 2.0}] * 3,
        ),
        ("truncated", [{"truncated": 0.25}], [{"truncated": 0.2}]),
        ("entropy_collapse", entropies([1.0] * 5 + [0.01] * 5), entropies([1.0] * 5 + [0.03] * 5)),
        # low from the start: a task with one answer is no collapse
        ("entropy_collapse", entropies([1.0] * 5 + [0.01] * 5), entropies([0.02] * 5 + [0.01] * 5)),
        ("gradient_spike", norms([1.0] * 5 + [10.1]), norms([1.0] * 5 + [10.0])),
        # before there are five steps nobody knows what is usual
        ("gradient_spike", norms([1.0, 1.0, 1.0, 1.0, 1.0, 99.0]), norms([1.0, 1.0, 99.0])),
        ("skipped", [{"update/skipped": 1.0}], [{"update/skipped": 0.0}]),
        ("no_gradient", [gradient(0.0)], [gradient(1e-9)]),
        # all rewards are equal, and nothing was to be learnt; no sample was left
        ("no_gradient", [gradient(0.0)], [gradient(0.0, kept=0.0)]),
        ("no_gradient", [gradient(0.0)], [gradient(0.0, tokens=0.0)]),
        ("heldout_falls", [measured(0.8, 0.5), measured(0.7, 0.6)], [measured(0.8, 0.5), measured(0.76, 0.6)]),
        # both fell: that is no reward hacking
        ("heldout_falls", [measured(0.8, 0.5), measured(0.7, 0.6)], [measured(0.8, 0.5), measured(0.7, 0.4)]),
        # of 50 answers a drop from 0.80 to 0.70 is within the noise: 2·sqrt((0.16 + 0.21)/50) = 0.17
        ("heldout_falls", [measured(0.8, 0.5), measured(0.7, 0.6)], [measured(0.8, 0.5, 50), measured(0.7, 0.6, 50)]),
        ("length_explosion", lengths([100.0] * 5 + [201.0] * 5), lengths([100.0] * 5 + [200.0] * 5)),
        # a growth that takes 100 steps for a factor of three is what R1 shows
        ("length_explosion", lengths([100.0] * 5 + [201.0] * 5), lengths([100.0 + 2 * step for step in range(100)])),
        ("sampler_kl", [{"mismatch/k3": 1.1e-3, "staleness/max": 0.0}], [{"mismatch/k3": 1e-3, "staleness/max": 0.0}]),
        # with staleness the weights differ, too
        ("sampler_kl", [{"mismatch/k3": 1.1e-3, "staleness/max": 0.0}], [{"mismatch/k3": 0.1, "staleness/max": 1.0}]),
        ("router_collapse", [{"experts/entropy_worst": 0.24}] * 5, [{"experts/entropy_worst": 0.25}] * 5),
        ("dead_experts", [{"experts/dead": 0.26}] * 5, [{"experts/dead": 0.25}] * 5),
        # four steps are no habit
        ("dead_experts", [{"experts/dead": 0.26}] * 5, [{"experts/dead": 0.9}] * 4),
        ("worker_replaced", [{"workers/replaced": 1.0}], [{"workers/replaced": 0.0}]),
        ("worker_lost", [{"workers/lost": 1.0}], [{"workers/lost": 0.0}, {}]),
        # a program past its limit of time was checked to the end: it is wrong
        ("no_verdict", [verdicts(0.0, 0.2)], [{**verdicts(), "verdict/program_timed_out": 1.0}]),
    ],
)  # fmt: skip
def test_limits(rule: str, speaks: list[dict[str, float]], silent: list[dict[str, float]]) -> None:
    assert rules(speaks) == [rule]
    assert rules(silent) == []


def test_a_program_that_is_too_slow_is_no_check_that_timed_out() -> None:
    """Two counters: the policy's program was stopped and is a wrong answer; a check that was stopped says nothing."""
    problem = Problem(id="p", prompt="?", verifier="code", reference="1")
    ids = np.zeros(1, dtype=np.int32)
    completion = Completion(prompt_ids=ids, token_ids=ids, sampler_logprobs=None, text="", finish_reason="stop")
    slow = RewardResult(score=0.0, verdict=Verdict.TIMED_OUT, verified=Verdict.TIMED_OUT)
    hung = RewardResult(score=None, verdict=Verdict.TIMED_OUT)
    right = RewardResult(score=1.0, verdict=Verdict.CORRECT, verified=Verdict.CORRECT)
    group = Group(group_id="g", problem=problem, completions_G=(completion,) * 4, rewards_G=(slow, hung, slow, right))
    shares = verdict_shares([group])
    assert (shares["verdict/program_timed_out"], shares["verdict/timed_out"]) == (0.5, 0.25)
    assert sum(shares.values()) == 1.0
    assert summarize([group], [group])["accuracy/train"] == 1 / 3


def test_routers_may_differ_more() -> None:
    one = [{"mismatch/k3": 2e-3, "staleness/max": 0.0}]
    assert rules(one) == ["sampler_kl"]
    assert rules(one, moe=True) == []
    assert rules([{"mismatch/k3": 6e-3, "staleness/max": 0.0}], moe=True) == ["sampler_kl"]


def test_each_rule_speaks_once_and_says_numbers() -> None:
    watch = health()
    watch.broke("judge.py:f: KeyError: 'no' (judge.py:9 in f)")
    found = steps(watch, [verdicts(0.25)] * 4)
    assert [(one.rule, one.step) for one in found] == [("no_verdict", 0)]
    assert "25% of the completions were not checked to the end (25% broken, 0% timed out)" in found[0].text
    assert "judge.py:9 in f" in found[0].text


def test_limits_are_the_recipe_s() -> None:
    assert rules([{"truncated": 0.25}], limits=HealthConfig(truncated=0.3)) == []
    assert rules([{"truncated": 0.35}], limits=HealthConfig(truncated=0.3)) == ["truncated"]


def test_a_stage_that_goes_on_knows_what_it_knew() -> None:
    """The rules that look back see the steps of the earlier process, and what was said is not said again."""
    rows: list[dict[str, float]] = [{"grad_norm": 1.0, "truncated": 0.5} for _ in range(6)]
    whole, before = health(), health()
    said = [one.rule for one in steps(before, rows)]
    assert said == ["truncated"]
    after = health()
    after.replay([{"step": step, "stage": "s", **row} for step, row in enumerate(rows)], said)
    last = StepReport(stage="s", kind="grpo", step=6, policy_version=7, scalars={"grad_norm": 50.0, "truncated": 0.5})
    steps(whole, rows)
    assert [one.rule for one in after.step(last)] == [one.rule for one in whole.step(last)] == ["gradient_spike"]


def test_a_step_without_any_verdict_stops() -> None:
    watch = health()
    steps(watch, [verdicts(0.99)])
    watch.broke("judge.py:f: KeyError: 'no' (judge.py:9 in f) [problem p1]")
    with pytest.raises(HealthStop, match=r"stage s, step 1: every verdict is BROKEN.*judge.py:9 in f\) \[problem p1\]"):
        watch.step(StepReport(stage="s", kind="grpo", step=1, policy_version=0, scalars=verdicts(1.0)))


@pytest.mark.parametrize(
    ("kind", "row", "words"),
    [
        (
            "grpo",
            {"groups/total": 4.0, "groups/zero_variance": 4.0, "groups/no_verdict": 0.0, "reward/mean": 0.5}
            | {"truncated": 0.25} | verdicts(),
            "0 tokens were trained: 8 of its 8 groups had equal rewards (mean 0.5), 25% of the completions were",
        ),
        (
            "grpo",
            {"groups/total": 4.0, "groups/zero_variance": 4.0, "groups/no_verdict": 3.0, "reward/mean": 0.0}
            | {"truncated": 0.0} | verdicts(0.5, 0.25),
            "2 of its 8 groups had equal rewards (mean 0), 6 had no score, 50% of the completions had a check that "
            "broke, 25% of the completions had a check that timed out",
        ),
        ("reject", {"kept": 0.0}, "no trace was kept: none of the completions is both correct and finished"),
        (
            "reject",
            {"kept": 0.0, "stopped/finished": 3.0, "stopped/format": 1040.0, "stopped/cap": 0.0},
            "no trace was kept: of 1,043 completions the filter format stopped most, 1,040 (the others: finished 3). "
            "All are in draws.jsonl",
        ),
        ("distill", {}, "no sample carried loss"),
    ],
)  # fmt: skip
def test_a_stage_that_learnt_nothing_stops_and_says_why(kind: str, row: dict[str, float], words: str) -> None:
    watch = health(kind)
    steps(watch, [row, row])
    with pytest.raises(HealthStop) as stop:
        watch.end(0)
    assert words in str(stop.value)


@pytest.mark.parametrize(("skipped", "stops"), [([1, 1], True), ([0, 1], True), ([1, 0], False), ([0, 0, 1], False)])
def test_a_stage_that_ends_with_skipped_steps(skipped: list[int], stops: bool) -> None:
    watch = health("sft")
    steps(watch, [{"update/skipped": float(one)} for one in skipped])
    if stops:
        with pytest.raises(HealthStop, match="steps were skipped"):
            watch.end(100)
    else:
        watch.end(100)


def test_healthy_stages_say_nothing() -> None:
    fine = {"grad_norm": 1.0, "entropy": 0.5, "truncated": 0.0, "length/mean": 100.0, "mismatch/k3": 1e-4}
    fine |= {"staleness/max": 0.0, "groups/total": 8.0, "groups/kept": 6.0, **verdicts()}
    watch = health()
    assert watch.begin(proved=True) == []
    assert steps(watch, [fine] * 50) == []
    watch.end(1)
    health("eval").end(0)


def test_deliveries_that_are_not_proved() -> None:
    assert [one.rule for one in health().begin(proved=False)] == ["unproved_delivery"]
    assert health("sft").begin(proved=False) == []


def test_every_limit_and_rule_is_in_the_docs() -> None:
    text = (Path(__file__).parents[2] / "docs" / "health.md").read_text(encoding="utf-8")
    for name in [*HealthConfig.model_fields, *WARNINGS, "unproved_delivery"]:
        assert f"`{name}`" in text, name
    assert all(limit in text for limit in ("0.10", "0.25", "0.20", "0.02", "2e-4"))


def test_the_screen_says_what_an_accuracy_leaves_out() -> None:
    screen = io.StringIO()
    display = RichDisplay(Console(file=screen, width=200))
    display.begin("rl", "grpo", 2)
    display.warn("rl, step 0: 31% of the completions [are] cut off")
    display.advance(1, {"accuracy/train": 0.5, "verdict/broken": 0.12, "verdict/timed_out": 0.0})
    display.advance(1, {"accuracy/heldout": 1.0, "heldout/broken": 0.3, "heldout/timed_out": 0.05})
    display.end("7 tokens trained")
    assert "! rl, step 0: 31% of the completions [are] cut off" in screen.getvalue()
    assert "train 50.0% (12% broken)  held-out 100.0% (30% broken, 5% timed out)" in screen.getvalue()


def test_an_accuracy_in_words() -> None:
    measured = Interval(value=0.81, low=0.773, high=0.842, count=500)
    assert accuracy_text(measured, 0.0, 0.0) == "81.0% [77.3%, 84.2%]"
    assert accuracy_text(measured, 0.12, 0.005) == "81.0% [77.3%, 84.2%]; 12.0% broken; 0.5% timed out"
    nothing = Interval(value=0.0, low=0.0, high=1.0, count=0)
    assert accuracy_text(nothing, 1.0, 0.0) == "no verified answer; 100.0% broken"
