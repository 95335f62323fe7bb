"""Where ranks and engines land: every run of docs/cluster.md on logical GPUs (1, 8, 8 x 8), as far as no real one is
needed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ray: Any = pytest.importorskip("ray", reason="Ray is not installed")

from logical import SMALL, cards, documented, hosts, recipe_of, started  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from rlreason.cli import app  # noqa: E402
from rlreason.cluster.needs import Need  # noqa: E402
from rlreason.cluster.places import Places, reserve  # noqa: E402
from rlreason.cluster.plan import RANK, WORKER, teacher_kind  # noqa: E402
from rlreason.cluster.run_places import RunPlaces  # noqa: E402
from rlreason.config import load  # noqa: E402
from rlreason.errors import UsageError  # noqa: E402
from rlreason.sampler.handles import RayCluster, RayOptions  # noqa: E402

#: Of each shown run: (ranks, GPUs of a rank's place, engines, GPUs of one, whether they take turns).
Expected = tuple[int, float, int, float, bool]


@pytest.fixture(scope="module")
def host() -> Iterator[Callable[[int], None]]:
    """One host with so many GPUs."""
    up: list[int] = []

    def with_gpus(gpus: int) -> None:
        if up != [gpus]:
            ray.shutdown()
            up[:] = [gpus]
            ray.init(address="local", num_gpus=gpus, include_dashboard=False, log_to_driver=False, **SMALL)

    yield with_gpus
    ray.shutdown()


def placed(line: str, monkeypatch: pytest.MonkeyPatch, own: int) -> tuple[RunPlaces, dict[str, Any]]:
    """The plan of a shown run, and where its actors come up. ``own``: GPUs that torch sees in this process."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: own)
    recipe = recipe_of(line)
    places = RunPlaces(recipe, name="run")
    kinds = [RANK, WORKER] if recipe.trainer.ranks else [WORKER]
    return places, {kind: places.take(kind) for kind in kinds}


def test_an_engine_beside_the_trainer_of_this_process_is_on_its_gpu(
    host: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of the host's GPUs Ray would have taken."""

    class Probe:
        def process_id(self) -> None:
            pass

    host(1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    places, taken = placed(documented("1 GPU")[0], monkeypatch, own=1)
    cluster = RayCluster(RayOptions(), Probe, places=taken[WORKER])  # type: ignore[arg-type]
    where = ray.get(cluster.start(0).actor.where.remote())
    assert where.visible == "5"
    cluster.close()
    places.close()


ONE_HOST: list[tuple[str, int, Expected]] = [
    ("1 GPU", 0, (0, 0, 1, 1.0, True)),
    ("1 GPU", 1, (1, 0.5, 1, 0.5, True)),
    ("8 GPUs, one host", 2, (0, 0, 3, 2.0, False)),
    ("8 GPUs, one host", 0, (4, 1.0, 2, 2.0, False)),
    ("8 GPUs, one host", 1, (8, 0.5, 8, 0.5, True)),
]
#: Six and sixteen processes come up: half a minute, and minutes.
LARGE = ONE_HOST[3:]


@pytest.mark.parametrize(
    ("section", "number", "expected"),
    [pytest.param(*one, marks=pytest.mark.slow if one in LARGE else ()) for one in ONE_HOST],
)
def test_runs_of_one_host(
    section: str, number: int, expected: Expected, host: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus = int(section.split(maxsplit=1)[0])
    line = documented(section)[number]
    ranks, of_a_rank, engines, of_an_engine, turns = expected
    # Where the trainer is in this process, a Ray that the run starts has the other GPUs, or the only one.
    host(gpus if ranks or gpus == 1 else gpus - 1)
    places, taken = placed(line, monkeypatch, own=gpus)
    try:
        assert places.colocated is turns
        found = {kind: started(one) for kind, one in taken.items()}
        drawing = cards(found[WORKER])
        assert [len(one.gpus) for one in found[WORKER].values()] == [max(1, of_an_engine)] * engines
        assert len(set(drawing)) == len(drawing) == engines * max(1, of_an_engine)  # no GPU has two engines
        if ranks:
            assert len(found[RANK]) == ranks
            training = cards(found[RANK])
            assert len(set(training)) == len(training) == ranks
            assert taken[RANK].need.gpus == of_a_rank
            if turns:  # each engine is on its rank's GPU
                assert drawing == training[:engines]
            else:
                assert not set(drawing) & set(training)
    finally:
        for one in taken.values():
            one.close()
        places.close()
    assert {one["state"] for one in ray.util.placement_group_table().values()} == {"REMOVED"}


def test_every_run_of_the_page_is_among_them() -> None:
    shown = Counter({section: len(documented(section)) for section in ("1 GPU", "8 GPUs, one host")})
    assert shown == Counter(section for section, _, _ in ONE_HOST)
    assert len(documented("64 GPUs, eight hosts")) == len(MANY)


MANY: list[Expected] = [(16, 1.0, 12, 4.0, False), (64, 0.5, 64, 0.5, True)]


def test_too_much_is_refused_together(host: Callable[[int], None]) -> None:
    """Each fits alone; both do not, and neither stays reserved."""
    host(8)
    needs = [
        Need(kind=RANK, setting="trainer.ranks", count=8, gpus=1.0),
        Need(kind=WORKER, setting="cluster.rollout_workers", count=1, gpus=1.0),
    ]
    with pytest.raises(
        UsageError,
        match=r"^trainer\.ranks = 8 needs 8 GPU; cluster\.rollout_workers = 1 needs 1 GPU, and Ray has 8 GPU: use",
    ):
        Places(needs).take(RANK)
    alone = Places(needs[:1]).take(RANK)
    with pytest.raises(UsageError, match=r"^cluster\.rollout_workers = 1 needs 1 GPU, and Ray has 0 GPU beside what"):
        Places(needs[1:]).take(WORKER)  # what this run holds it does not wait for
    alone.close()


def test_a_teacher_is_on_none_of_the_others_gpus(
    host: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Engines take every GPU that is left, so its place is reserved before theirs."""
    host(5)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    taught = RECIPE.replace('kind = "grpo"', 'kind = "opd"\nmodel = "policy"').replace("[data]", TEACHER)
    (tmp_path / "recipe.toml").write_text(taught)
    places = RunPlaces(load(tmp_path / "recipe.toml", ("trainer.ranks=2",)), name="run")
    taken = {kind: places.take(kind) for kind in (RANK, WORKER, teacher_kind("big"))}
    assert [one.need.count for one in taken.values()] == [2, 2, 1]
    found = [card for one in taken.values() for card in cards(started(one))]
    assert len(set(found)) == len(found) == 5
    for one in taken.values():
        one.close()
    places.close()


def test_as_many_as_fit_have_cores_too(host: Callable[[int], None]) -> None:
    """Eight GPUs and eight cores: three cores an engine are two engines, beside a rank that takes no core."""
    host(8)
    needs = [
        Need(kind=RANK, setting="trainer.ranks", count=1, gpus=1.0),
        Need(kind=WORKER, setting="cluster.rollout_workers", count=0, cpus=3.0, gpus=1.0),
    ]
    places = Places(needs)
    taken = [places.take(RANK), places.take(WORKER)]
    assert [one.need.count for one in taken] == [1, 2]
    for one in taken:
        one.close()
    places.close()


RECIPE = """
name = "logical"
[policy]
model_type = "qwen3"
model = { hidden_size = 32, num_hidden_layers = 1, num_attention_heads = 2, num_key_value_heads = 1, head_dim = 16, \
intermediate_size = 32, max_position_embeddings = 64 }
[data]
train = "arithmetic"
[cluster]
kind = "ray"
[[stage]]
kind = "grpo"
name = "grpo"
steps = 1
problems_per_step = 2
max_tokens = 4
optimizer = { lr = 1e-3 }
"""


TEACHER = '[teacher.big]\npath = "org/big"\nwhere = "worker"\n[data]'


@pytest.mark.parametrize(
    ("overrides", "who"),
    [
        (["trainer.ranks=2", "cluster.colocate=false"], "trainer-rank"),
        (["cluster.rollout_workers=2", "cluster.colocate=false"], "rollout-worker"),
    ],
)
def test_a_run_goes_as_far_as_a_real_gpu(
    overrides: list[str], who: str, host: Callable[[int], None], tmp_path: Path
) -> None:
    """Torch here sees no GPU, so whoever is given one by Ray says so at once, and training on the CPU in silence is
    not what the user gets."""
    host(8)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    out = tmp_path / "out"
    arguments = ["run", str(tmp_path / "recipe.toml"), "--out", str(out), *overrides]
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, UsageError), done.output
    said = " ".join(str(done.exception).split())
    assert json.loads((out / "manifest.json").read_text())["stages"][0]["status"] == "failed"
    for part in ("Ray gave GPU", "torch sees none there"):
        assert part in said
    logs = list((out / "logs").iterdir())  # the other one may not have come up before the run ended
    assert {log.name for log in logs} <= {f"{who}-0.log", f"{who}-1.log"}
    for log in logs:
        first = log.read_text().splitlines()[0]
        assert f" out/{log.stem}: process " in first
        assert ", GPU " in first
    assert logs


def test_names_and_logs(host: Callable[[int], None], tmp_path: Path) -> None:
    host(8)

    class Speaker:
        def speak(self) -> None:
            import os
            import subprocess

            print("of Python")
            os.write(2, b"of native code\n")
            subprocess.run(["echo", "of a child"], check=True)

    from rlreason.cluster.actor import log_of, make_actor

    need = Need(kind=RANK, setting="trainer.ranks", count=2, gpus=1.0)
    places = Places([need], run="gsm8k-7", logs=tmp_path).take(RANK)
    actors = [make_actor(places, Speaker, number, lane="beside", environment={}) for number in (0, 1)]
    ray.get([actor.speak.remote() for actor in actors], timeout=120)
    assert set(ray.util.list_named_actors()) >= {"gsm8k-7/trainer-rank-0", "gsm8k-7/trainer-rank-1"}
    ray.kill(actors[1])
    successor = make_actor(places, Speaker, 1, lane="beside", environment={})
    ray.get(successor.speak.remote(), timeout=120)
    assert "gsm8k-7/trainer-rank-1~2" in ray.util.list_named_actors()
    log = log_of(places, 0)
    assert log == tmp_path / "trainer-rank-0.log"
    lines = log.read_text().splitlines()
    assert lines[1:] == ["of Python", "of native code", "of a child"]
    assert (tmp_path / "trainer-rank-1.log").read_text().count("gsm8k-7/trainer-rank-1") == 2
    places.close()


def test_two_hosts_of_four(host: Callable[[int], None]) -> None:
    """An engine's GPUs are of one host, so three GPUs of two hosts are no engine of three more; and spread is asked."""
    ray.shutdown()
    with hosts(2, 4) as cluster:
        gpus = 2.0
        plan = Places(
            [
                Need(kind=RANK, setting="trainer.ranks", count=3, gpus=1.0),
                Need(kind=WORKER, setting="cluster.rollout_workers", count=0, cpus=1.0, gpus=gpus, spread=True),
            ],
            run="one",
        )
        ranks, workers = plan.take(RANK), plan.take(WORKER)
        assert workers.need.count == 2  # of five GPUs that are left: one beside the ranks, four on the other host
        found = {RANK: started(ranks), WORKER: started(workers)}
        assert len({one.node for one in found[RANK].values()}) == 1
        assert not set(cards(found[RANK])) & set(cards(found[WORKER]))
        assert all(len(one.gpus) == gpus for one in found[WORKER].values())
        ranks.close()
        workers.close()
        with pytest.raises(
            UsageError,
            match=r"^cluster\.rollout_workers = 1 needs 5 GPU, 5 GPU each, of one host; the most that a host has is",
        ):
            Places([Need(kind=WORKER, setting="cluster.rollout_workers", count=1, gpus=5.0)]).take(WORKER)
        _lost_host(cluster)


def _lost_host(cluster: Any) -> None:
    """A place whose host is gone has none, and another one where there is room."""
    places = reserve(Need(kind=WORKER, setting="cluster.rollout_workers", count=2, gpus=4.0, spread=True))
    before = [places.host(number) for number in range(2)]
    assert None not in before
    (gone,) = [one for one in cluster.list_all_nodes() if one is not cluster.head_node]
    lost = before.index(gone.node_id)
    cluster.remove_node(gone, allow_graceful=False)
    while places.host(lost) is not None:  # until Ray has noticed
        pass
    assert places.host(1 - lost) == before[1 - lost]
    cluster.add_node(num_gpus=4, **SMALL)
    while places.host(lost) is None:
        pass
    assert places.host(lost) not in before
    places.close()


def test_places_that_are_still_to_come_are_waited_for(host: Callable[[int], None]) -> None:
    ray.shutdown()
    told: list[str] = []
    with hosts(1, 0) as cluster:

        def tell(line: str) -> None:
            told.append(line)
            cluster.add_node(num_gpus=2, **SMALL)

        need = Need(kind=RANK, setting="trainer.ranks", count=2, gpus=1.0)
        with pytest.raises(UsageError, match=r"where hosts are still to come, set cluster\.wait_for_places$"):
            Places([need]).take(RANK)
        with pytest.raises(UsageError, match=r"and Ray has 0 GPU, after \d s: use fewer"):
            Places([need], wait=1.5, tell=told.append).take(RANK)
        told.clear()
        places = Places([need], wait=300.0, tell=tell).take(RANK)
        assert len(set(cards(started(places)))) == 2
        places.close()
    assert len(told) == 1
    assert told[0].startswith("waiting for places in Ray: trainer.ranks = 2 needs 2 GPU, and Ray has 0 GPU (")


@pytest.mark.slow
def test_runs_of_eight_hosts_of_eight(host: Callable[[int], None], monkeypatch: pytest.MonkeyPatch) -> None:
    ray.shutdown()
    with hosts(8, 8):
        for line, (ranks, _, engines, of_an_engine, turns) in zip(
            documented("64 GPUs, eight hosts"), MANY, strict=True
        ):
            places, taken = placed(line, monkeypatch, own=0)
            tables = {kind: ray.util.placement_group_table(one.group) for kind, one in taken.items()}
            homes = {kind: list(one["bundles_to_node_id"].values()) for kind, one in tables.items()}
            assert (len(homes[RANK]), taken[WORKER].need.count, places.colocated) == (ranks, engines, turns)
            # The ranks are together: on as few hosts as hold them.
            assert len(set(homes[RANK])) == ranks // 8
            if not turns:
                used = Counter(homes[RANK])
                for home in homes[WORKER]:
                    used[home] += int(of_an_engine)
                assert set(used.values()) == {8}
            # On the hosts of two engines or ranks: their actors, and the GPUs that they see.
            some = {homes[RANK][0], homes[WORKER][-1]}
            chosen = {kind: [number for number, home in enumerate(homes[kind]) if home in some] for kind in taken}
            found = {kind: started(one, chosen[kind]) for kind, one in taken.items()}
            for kind, wheres in found.items():
                assert all(one.node == homes[kind][number] for number, one in wheres.items())
                assert all(one.visible == ",".join(one.gpus) for one in wheres.values())
                assert len(set(cards(wheres))) == len(cards(wheres))
            if turns:
                assert cards(found[RANK]) == cards(found[WORKER])
            else:
                assert not set(cards(found[RANK])) & set(cards(found[WORKER]))
                assert {len(one.gpus) for one in found[WORKER].values()} == {4}
            for one in taken.values():
                one.close()
            places.close()
