"""Who gets which GPU, by the recipe alone: no Ray, no GPU."""

from __future__ import annotations

from typing import Any

import pytest

from rlreason.cluster.plan import ClusterPlan, plan_places
from rlreason.config import Recipe
from rlreason.errors import UsageError

GRPO = {"kind": "grpo", "name": "g", "steps": 1, "problems_per_step": 1, "max_tokens": 8, "optimizer": {"lr": 1.0}}


def recipe(*stages: dict[str, object], **tables: dict[str, object]) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "test",
            "policy": {"model_type": "qwen3"},
            "data": {"train": "arithmetic"},
            "stage": list(stages) or [GRPO],
            **{"cluster": {"kind": "ray"}} | tables,
        }
    )


def plan(gpus: float, *stages: dict[str, object], **tables: dict[str, object]) -> ClusterPlan:
    return plan_places(recipe(*stages, **tables), gpus, cores=2)


def ray(**keys: object) -> dict[str, object]:
    return {"kind": "ray", **keys}


def bundles(plan: ClusterPlan) -> list[tuple[str, int, dict[str, float]]]:
    return [(one.kind, one.count, one.bundle) for one in plan.needs if one.within is None]


CASES: list[tuple[str, float, dict[str, Any], bool, list[tuple[str, int, dict[str, float]]]]] = [
    ("no GPU: a worker a core", 0, {}, False, [("rollout worker", 2, {"CPU": 1.0})]),
    ("one GPU: in turns on it", 1, {}, True, [("rollout worker", 1, {"CPU": 1.0, "GPU": 1.0})]),
    ("two: one each", 2, {}, False, [("rollout worker", 0, {"CPU": 1.0, "GPU": 1.0})]),
    (
        "one GPU and a rank: rank and engine in one place",
        1,
        {"trainer": {"ranks": 1}},
        True,
        [("trainer rank", 1, {"CPU": 1.0, "GPU": 1.0})],
    ),
    (
        "ranks on all of eight: an engine beside each",
        8,
        {"trainer": {"ranks": 8}},
        True,
        [("trainer rank", 8, {"CPU": 1.0, "GPU": 1.0})],
    ),
    (
        "ranks on four of eight, engines of two",
        8,
        {"trainer": {"ranks": 4}, "sampler": {"tensor_parallel": 2}},
        False,
        [("trainer rank", 4, {"GPU": 1.0}), ("rollout worker", 0, {"CPU": 1.0, "GPU": 2.0})],
    ),
    (
        "colocated because it is said",
        8,
        {"trainer": {"ranks": 4}, "cluster": ray(colocate=True)},
        True,
        [("trainer rank", 4, {"CPU": 1.0, "GPU": 1.0})],
    ),
    (
        "shared without turns because that is said",
        1,
        {"cluster": ray(gpus_per_worker=0.5)},
        False,
        [("rollout worker", 0, {"CPU": 1.0, "GPU": 0.5})],
    ),
    (
        "an autoscaler that has no GPU up yet",
        0,
        {"trainer": {"ranks": 2}, "cluster": ray(gpus_per_worker=1, rollout_workers=3)},
        False,
        [("trainer rank", 2, {"GPU": 1.0}), ("rollout worker", 3, {"CPU": 1.0, "GPU": 1.0})],
    ),
]


@pytest.mark.parametrize(
    ("gpus", "tables", "colocated", "expected"), [case[1:] for case in CASES], ids=[c[0] for c in CASES]
)
def test_who_gets_what(gpus: float, tables: dict[str, Any], colocated: bool, expected: list[Any]) -> None:
    found = plan(gpus, **tables)
    assert found.colocated is colocated
    assert bundles(found) == expected


def test_a_rank_and_its_engine_fill_the_place_that_they_share() -> None:
    found = plan(1, trainer={"ranks": 1})
    ranks, workers = found.ranks, found.workers
    assert ranks is not None
    assert workers is not None
    assert workers.within == ranks.kind
    assert ranks.bundle == {key: value + {"GPU": ranks.gpus}.get(key, 0.0) for key, value in workers.bundle.items()}


def test_an_engine_on_the_gpu_of_this_process_stays_on_its_host() -> None:
    workers = plan(1).workers
    assert workers is not None
    assert workers.here
    both = plan(2).workers
    assert both is not None
    assert not both.here


def test_who_does_not_draw_reserves_no_engine() -> None:
    sft = {"kind": "sft", "name": "s", "steps": 1, "demonstrations": 1}
    found = plan(4, sft, trainer={"ranks": 4})
    assert bundles(found) == [("trainer rank", 4, {"GPU": 1.0})]
    assert not found.colocated
    assert [one.kind for one in found.others] == ["rollout worker"]
    watched = plan(4, {**sft, "eval_every": 1}, trainer={"ranks": 2})
    assert [one.kind for one in watched.needs] == ["trainer rank", "rollout worker"]


@pytest.mark.parametrize(
    ("gpus", "stages", "tables", "match"),
    [
        (1, [{**GRPO, "staleness": 1}], {}, r"^one GPU is for trainer and engine in turns, and staleness > 0"),
        (
            8,
            [],
            {"trainer": {"ranks": 4}, "sampler": {"tensor_parallel": 2}, "cluster": ray(colocate=True)},
            r"^cluster\.colocate puts an engine on each rank's GPU, and sampler\.tensor_parallel = 2",
        ),
        (
            8,
            [],
            {"trainer": {"ranks": 2}, "cluster": ray(colocate=True, rollout_workers=3)},
            r"cluster\.rollout_workers = 3 is more than trainer\.ranks = 2",
        ),
    ],
)
def test_what_can_not_share_is_refused(gpus: float, stages: list[Any], tables: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        plan(gpus, *stages, **tables)


def test_staleness_on_all_gpus_of_the_ranks_is_not_taken_for_turns() -> None:
    """Nothing can be drawn while it learns: the engine asks for a GPU of its own, and Ray's refusal says so."""
    found = plan(2, {**GRPO, "staleness": 1}, trainer={"ranks": 2})
    assert not found.colocated
    assert [one.kind for one in found.needs] == ["trainer rank", "rollout worker"]


OPD = {"kind": "opd", "name": "o", "model": "policy", "steps": 1, "problems_per_step": 1, "max_tokens": 8}


def test_a_teacher_in_a_worker_has_a_place_of_the_plan() -> None:
    """Behind the ranks and before engines, which take what is left."""
    elsewhere = {"teacher": {"big": {"path": "org/big", "where": "worker"}}}
    found = plan(4, OPD, trainer={"ranks": 1}, **elsewhere)
    assert bundles(found) == [
        ("trainer rank", 1, {"GPU": 1.0}),
        ("teacher big", 1, {"GPU": 1.0}),
        ("rollout worker", 0, {"CPU": 1.0, "GPU": 1.0}),
    ]
    assert not found.colocated
    two = plan(2, OPD, trainer={"ranks": 1}, **elsewhere)
    assert two.colocated  # the second one is the teacher's
    assert [one.gpus for one in two.needs] == [0.5, 1.0, 0.5]
    assert [one.gpus for one in plan(0, OPD, **elsewhere).teachers] == [0.0]
    assert not plan(4, OPD, teacher={"big": {"path": "org/big"}}).teachers  # beside the student
    assert not plan(4, GRPO, **elsewhere).teachers  # nobody asks it
    assert not plan(4, OPD, cluster={"kind": "inline"}, **elsewhere).teachers


def test_auto_over_ray_is_ray_for_teachers_too() -> None:
    pytest.importorskip("ray")
    pytest.importorskip("vllm")
    elsewhere = {"teacher": {"big": {"path": "org/big", "where": "worker"}}, "cluster": {"kind": "auto"}}
    assert [one.kind for one in plan(4, OPD, **elsewhere).teachers] == ["teacher big"]
    assert not plan(0, OPD, **elsewhere).teachers


def test_one_gpu_has_no_room_for_a_teacher_of_its_own() -> None:
    elsewhere = {"teacher": {"big": {"path": "org/big", "where": "worker"}}}
    with pytest.raises(UsageError, match=r'^teacher\.big\.where = "worker" wants a GPU .*: say where = "trainer"$'):
        plan(1, OPD, **elsewhere)
    with pytest.raises(UsageError, match=r"or trainer\.ranks = 1 with cluster\.colocate$"):
        plan(4, OPD, cluster=ray(colocate=True), **elsewhere)
