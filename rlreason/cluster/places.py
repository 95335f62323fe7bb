"""Places in Ray for the actors of one run: reserved together before any is started, waited for or refused by name.

A place is a bundle of a placement group. One group per kind of actor, the trainer's ranks first, which are kept close
together; all are asked for at once, so that neither kind takes the other's GPUs and an autoscaler sees what is wanted.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rlreason.cluster.growth import can_grow
from rlreason.cluster.needs import Need
from rlreason.cluster.session import RaySession
from rlreason.errors import UsageError

#: Seconds for which places are waited for that others hold or that an autoscaler may add.
WAIT_SECONDS = 600.0
#: Seconds between two lines that say so.
SAY_EVERY = 30.0
#: Before the first.
SAY_AFTER = 2.0
#: Seconds that Ray is given to place what it has room for.
PLACE_SECONDS = 20.0


@dataclass(slots=True, eq=False)
class Reservation:
    """Places of one kind; whoever takes them closes them. ``need.count`` is how many there are."""

    need: Need
    session: RaySession
    group: Any
    #: False where the places are another kind's, who gives them back.
    owns: bool = True
    taken: bool = False
    #: What the actors' names begin with, and the folder of what they write.
    run: str = "rlreason"
    logs: Path | None = None

    def __post_init__(self) -> None:
        _HELD.append(self)

    @property
    def ray(self) -> Any:
        """The module."""
        return self.session.ray

    def strategy(self, number: int) -> Any:
        """For an actor's options: where actor ``number`` goes."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        return PlacementGroupSchedulingStrategy(placement_group=self.group, placement_group_bundle_index=number)

    def host(self, number: int) -> str | None:
        """Id of the live Ray node that place ``number`` is on; None: on none, as where its host is gone."""
        table = self.ray.util.placement_group_table(self.group)
        node: str | None = table["bundles_to_node_id"].get(number)
        alive = {one["NodeID"] for one in self.ray.nodes() if one["Alive"]}
        return node if node in alive else None

    def close(self) -> None:
        """Give the places back, and leave Ray; a second time does nothing."""
        if self.owns and self.group is not None:
            with contextlib.suppress(Exception):
                self.ray.util.remove_placement_group(self.group)
        self.group = None
        if self in _HELD:
            _HELD.remove(self)
        self.session.close()


#: Of this process: what it holds it does not wait for.
_HELD: list[Reservation] = []


@dataclass(slots=True)
class Places:
    """The plan: what the kinds of actors of a run need, and what of it is reserved.

    ``address``: of the Ray (``RaySession``). ``wait``: seconds for places that are not free; None: ``WAIT_SECONDS``
    where waiting can help, and none where the cluster is too small and can't grow. ``tell`` is given a line now and
    then meanwhile.
    """

    needs: Sequence[Need]
    #: Kinds that nobody is expected to ask for.
    others: Sequence[Need] = ()
    address: str | None = None
    own_gpu: bool = False
    wait: float | None = None
    tell: Callable[[str], None] = lambda _: None
    #: See ``Reservation``.
    run: str = "rlreason"
    logs: Path | None = None
    _reserved: dict[str, Reservation] = field(default_factory=dict, init=False)

    def take(self, kind: str, *, sharing_cores: bool = False) -> Reservation:
        """The places of ``kind``. The first call reserves those of all kinds; who asks again gets other ones, with
        ``sharing_cores`` on the cores of the first.

        Raises UsageError where Ray is absent or unreachable, or has too little.
        """
        if not self._reserved:
            self._reserve(self.needs)
        known = self._reserved.get(kind)
        if known is None or known.taken:
            need = next(one for one in (*self.needs, *self.others) if one.kind == kind)
            self._reserve([replace(need, cpus=0.0) if sharing_cores and not need.gpus else need])
        self._reserved[kind].taken = True
        return self._reserved[kind]

    def close(self) -> None:
        """Give back what was reserved and not taken."""
        for one in self._reserved.values():
            if not one.taken:
                one.close()
        self._reserved.clear()

    def _reserve(self, needs: Sequence[Need]) -> None:
        made: list[Reservation] = []
        try:
            for need in needs:
                made.append(self._begin(need, made))
            self._await([one for one in made if one.owns])
        except BaseException:
            for one in made:
                one.close()
            raise
        self._reserved.update((one.need.kind, one) for one in made)

    def _begin(self, need: Need, made: Sequence[Reservation]) -> Reservation:
        """Ask Ray for the places of ``need``."""
        session = RaySession(self.address, own_gpu=self.own_gpu)
        host = next((one for one in [*made, *self._reserved.values()] if one.need.kind == need.within), None)
        shared = [one.group for one in _HELD if not one.owns]
        if host is not None and host.group is not None and host.group not in shared:
            guest = replace(need, count=min(need.count or host.need.count, host.need.count))
            return Reservation(need=guest, session=session, group=host.group, owns=False, run=self.run, logs=self.logs)
        try:
            if not need.count:
                self._await([one for one in made if one.owns])  # what is left is known once they have their places
                need = replace(need, count=max(1, _room(session.ray, need)))
            strategy = "SPREAD" if need.spread else "PACK"
            here = {f"node:{session.ray.util.get_node_ip_address()}": 0.001} if need.here else {}
            group = session.ray.util.placement_group([need.bundle | here] * need.count, strategy=strategy)
        except BaseException:
            session.close()
            raise
        return Reservation(need=need, session=session, group=group, run=self.run, logs=self.logs)

    def _await(self, made: Sequence[Reservation]) -> None:
        """Wait until all have their places, or raise UsageError."""
        began, said = time.monotonic(), 0.0
        waiting = list(made)
        while waiting:
            short = _shortage(made)
            waiting = [one for one in waiting if not one.group.wait(timeout_seconds=0.0 if short else 1.0)]
            passed = time.monotonic() - began
            limit = self._limit(made[0].ray, short)
            if waiting and passed >= limit:
                raise UsageError(_refusal(made, short, passed if limit else 0.0))
            if waiting and (passed - said >= SAY_EVERY or (not said and passed > SAY_AFTER)):
                said = passed
                what = short or f"{_needed(made)}, and others hold it"
                self.tell(f"waiting for places in Ray: {what} ({passed:.0f} of {limit:.0f} s)")
            if waiting and short:
                time.sleep(1.0)

    def _limit(self, ray: Any, short: str) -> float:
        """Seconds to wait for places while ``short`` is all that the cluster lacks; "": others hold them."""
        if self.wait is not None:
            return max(self.wait, 0.0 if short else PLACE_SECONDS)
        return WAIT_SECONDS if not short or can_grow(ray) else 0.0


def reserve(need: Need, address: str | None = None, *, own_gpu: bool = False) -> Reservation:
    """Places of one kind alone; see ``Places.take``."""
    return Places([need], address=address, own_gpu=own_gpu).take(need.kind)


def _hosts(ray: Any, groups: Iterable[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Resources of each host that is up, without those that ``groups`` hold there."""
    left = {one["NodeID"]: dict(one["Resources"]) for one in ray.nodes() if one["Alive"]}
    for group in groups:
        for number, node in group["bundles_to_node_id"].items() if group.get("state") == "CREATED" else ():
            for key, amount in group["bundles"][number].items() if node in left else ():
                left[node][key] = left[node].get(key, 0.0) - amount
    return list(left.values())


def _room(ray: Any, need: Need) -> int:
    """How many of ``need`` fit beside all groups that have their places, host by host. Not by what Ray calls available,
    which lags behind."""
    return sum(_times(one, need.bundle) for one in _hosts(ray, ray.util.placement_group_table().values()))


def _besides(made: Sequence[Reservation]) -> list[dict[str, float]]:
    """Resources of each host, without what this process holds beside ``made``."""
    ray = made[0].ray
    return _hosts(ray, [ray.util.placement_group_table(one.group) for one in _held_beside(made)])


def _held_beside(made: Sequence[Reservation]) -> list[Reservation]:
    return [one for one in _HELD if one.owns and one.group is not None and one not in made]


def _times(resources: Mapping[str, float], bundle: Mapping[str, float]) -> int:
    """How often ``bundle`` fits."""
    return int(max(0.0, min((resources.get(key, 0.0) + 1e-9) / need for key, need in bundle.items())))


def _shortage(made: Sequence[Reservation]) -> str:
    """What the cluster lacks for all of ``made``, were no other run in it; "" where it lacks nothing."""
    hosts = _besides(made)
    wanted: dict[str, float] = {}
    for one in made:
        for key, amount in one.need.bundle.items():
            wanted[key] = wanted.get(key, 0.0) + amount * one.need.count
    total = {key: sum(one.get(key, 0.0) for one in hosts) for key in wanted}
    if any(total[key] + 1e-9 < amount for key, amount in wanted.items()):
        beside = " beside what this run holds" if _held_beside(made) else ""
        return f"{_needed(made)}, and Ray has {_amounts(total)}{beside}"
    for one in made:
        if sum(_times(resources, one.need.bundle) for resources in hosts) < one.need.count:
            largest = {key: max((host.get(key, 0.0) for host in hosts), default=0.0) for key in one.need.bundle}
            each = _amounts(one.need.bundle)
            return f"{_needed(made)}, {each} each, of one host; the most that a host has is {_amounts(largest)}"
    return ""


def _needed(made: Sequence[Reservation]) -> str:
    """Example: "trainer.ranks = 4 needs 4 GPU; cluster.rollout_workers = 2 needs 2 CPU, 4 GPU"."""
    parts = []
    for one in made:
        need = one.need
        needs = _amounts({key: amount * need.count for key, amount in need.bundle.items()})
        parts.append(f"{need.setting} = {need.count} needs {needs}")
    return "; ".join(parts)


def _amounts(amounts: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {key}" for key, amount in amounts.items())


def _refusal(made: Sequence[Reservation], short: str, waited: float) -> str:
    after = f", after {waited:.0f} s" if waited else ""
    if short:
        return (
            f"{short}{after}: use fewer or a larger cluster; where hosts are still to come, set cluster.wait_for_places"
        )
    hosts = _besides(made)
    keys = dict.fromkeys(key for one in made for key in one.need.bundle)
    has = _amounts({key: sum(one.get(key, 0.0) for one in hosts) for key in keys})
    return f"{_needed(made)}, and Ray has {has} with too little of it free{after}: use fewer or a larger cluster"
