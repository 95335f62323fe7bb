"""The places of one run: which Ray it is in, how many GPUs that has, and the plan of who gets them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from rlreason.cluster.growth import can_grow
from rlreason.cluster.places import WAIT_SECONDS, Places, Reservation
from rlreason.cluster.plan import ClusterPlan, colocates, over_ray, plan_places
from rlreason.cluster.session import RaySession
from rlreason.config import Recipe
from rlreason.cores import usable_cores

#: Seconds for which a place whose host is gone stays empty, before the run goes on without it.
HOMELESS_SECONDS = 30.0


@dataclass(slots=True)
class RunPlaces:
    """Made before anything is started; Ray is joined or started with the first question that needs it."""

    recipe: Recipe
    #: Given a line where the run waits for places, and one that says who has which.
    tell: Callable[[str], None] = lambda _: None
    #: The run's name, with which its actors' names begin.
    name: str = "rlreason"
    #: Folder for what the actors write.
    logs: Path | None = None
    _session: RaySession | None = field(default=None, init=False)
    _plan: ClusterPlan | None = field(default=None, init=False)
    _places: Places | None = field(default=None, init=False)

    @property
    def gpus(self) -> float:
        """GPUs that the run may use: Ray's where its actors are, and those of this process."""
        local = float(torch.cuda.device_count())
        if not self.recipe.trainer.ranks and not over_ray(self.recipe, local):
            return local
        session = self._joined()
        everywhere = session.gpus()
        if self.recipe.trainer.ranks or not everywhere:
            return everywhere
        # A trainer in this process holds the first of its GPUs, which a Ray may have been started without.
        outside = local > session.gpus_here() or not local
        return everywhere + 1 if outside else everywhere

    @property
    def plan(self) -> ClusterPlan:
        """Who gets what. Raises UsageError for what can't share GPUs."""
        if self._plan is None:
            self._plan = plan_places(self.recipe, self.gpus, usable_cores())
        return self._plan

    @property
    def colocated(self) -> bool:
        """Whether engine and trainer take turns."""
        return self.plan.colocated

    @property
    def homeless_seconds(self) -> float:
        """How long a place whose host is gone is kept: an autoscaler may bring another."""
        wait = self.recipe.cluster.wait_for_places
        if wait is not None:
            return max(wait, HOMELESS_SECONDS)
        return WAIT_SECONDS if can_grow(self._joined().ray) else HOMELESS_SECONDS

    def take(self, kind: str, *, sharing_cores: bool = False) -> Reservation:
        """The places of ``kind`` (``plan.RANK``, ``plan.WORKER``). The first call reserves those of the whole run;
        a second one of the same kind takes others, with ``sharing_cores`` on the cores of the first.

        Raises UsageError where there is too little.
        """
        if self._places is None:
            self._places = Places(
                self.plan.needs,
                others=self.plan.others,
                address=self.recipe.cluster.address,
                own_gpu=self._own_gpu,
                wait=self.recipe.cluster.wait_for_places,
                tell=self.tell,
                run=self.name,
                logs=self.logs,
            )
            if self.logs is not None:
                self.logs.mkdir(parents=True, exist_ok=True)
        return self._places.take(kind, sharing_cores=sharing_cores)

    def close(self) -> None:
        """Give back what nobody took, and leave Ray; a second time does nothing."""
        if self._places is not None:
            self._places.close()
        if self._session is not None:
            self._session.close()
        self._places = self._session = self._plan = None

    @property
    def _own_gpu(self) -> bool:
        """Whether a Ray that is started here leaves the first GPU to the trainer in this process."""
        return not self.recipe.trainer.ranks and not colocates(self.recipe, float(torch.cuda.device_count()))

    def _joined(self) -> RaySession:
        if self._session is None:
            self._session = RaySession(self.recipe.cluster.address, own_gpu=self._own_gpu)
        return self._session
