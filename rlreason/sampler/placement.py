"""Which engine and cluster a run draws with, and its pools of rollout workers: one a role, for all of its stages."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from transformers import AutoTokenizer

from rlreason.cluster.plan import WORKER, over_ray
from rlreason.cluster.run_places import RunPlaces
from rlreason.config import GrpoStage, Recipe
from rlreason.data.prompts import PromptFormat
from rlreason.delivery.group import Backend, GroupOptions
from rlreason.delivery.packing import Packer
from rlreason.errors import UsageError
from rlreason.routing import experts_in
from rlreason.sampler.canary import Canary
from rlreason.sampler.handles import Cluster, InlineCluster, RayCluster, RayOptions
from rlreason.sampler.jobs import EngineKind, EngineSpec, VllmOptions
from rlreason.sampler.open import ServedModel, engine_spec, installed, why_not_vllm
from rlreason.sampler.pool import Patience, RolloutPool
from rlreason.sampler.pool_sampler import PoolSampler
from rlreason.sampler.worker import RolloutWorker
from rlreason.types import Sampler


@dataclass(slots=True)
class Samplers:
    """Opens samplers for the models of one run. The workers of a role stay; only weights and, where a model has another
    shape, engines change. Pools of different roles are up at the same time."""

    recipe: Recipe
    prompt_format: PromptFormat
    #: CPU threads of an inline engine.
    threads: int
    #: Of the whole run, where it shares them with a trainer.
    places: RunPlaces = field(default=None)  # type: ignore[assignment]
    #: By role, in the order in which they were opened.
    _pools: dict[str, RolloutPool] = field(default_factory=dict, init=False)
    #: What ``describe`` says.
    _used: dict[str, str] = field(default_factory=dict, init=False)
    #: The most that was to be left beside an engine, so that it is not built anew for each stage.
    _beside: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.places = self.places or RunPlaces(self.recipe)

    def open(
        self, model: ServedModel, *, role: str = "policy", version: int = 0, growth: int = 0, ahead: bool = False
    ) -> PoolSampler:
        """A sampler that holds the model's weights as ``version``. It takes over the workers of the one opened before
        in the same role, which is no longer valid. ``growth``: bytes of a GPU that the model's owner will yet take,
        where both share it. ``ahead``: the model is trained while workers take its weights, so they need a copy.

        Raises UsageError where the recipe names an engine or a cluster that is not there.
        """
        self._beside = max(self._beside, growth)
        kind, ray = self._choose(model)
        spec = self._spec(kind, model, ray=ray)
        canary = self._canary(model, spec) if self.recipe.sampler.canary else None
        packer = self._packer(ray=ray, ahead=ahead)
        if role in self._pools and not self._pools[role].closed:
            self._pools[role].follow(spec, canary, packer)
        else:
            cluster, workers = self._cluster(ray=ray)
            patience = Patience(
                working=self.recipe.cluster.worker_timeout, homeless=self.places.homeless_seconds if ray else 0.0
            )
            self._pools[role] = RolloutPool(cluster, spec, workers, canary=canary, packer=packer, patience=patience)
            self._used[role] = f"{kind} x {workers} {'over Ray' if ray else 'in this process'}"
        sampler = PoolSampler(self._pools[role], model.tokenizer, self.prompt_format)
        sampler.publish(model.weights(), version, model.expectations(sampler.probes))
        return sampler

    def endpoint(self, name: str) -> Sampler:
        """A sampler of the server in ``[endpoint.name]``; who opens it closes it.

        Raises UsageError where its tokenizer can't be loaded, its key is not set, or httpx is not installed.
        """
        if not installed("httpx"):
            raise UsageError(f"endpoint {name!r} needs httpx: pip install 'rlreason[train]'")
        from rlreason.sampler.endpoint import EndpointSampler

        config = self.recipe.endpoint[name]
        tokenizer = None
        if config.tokenizer is not None:
            try:
                tokenizer = AutoTokenizer.from_pretrained(config.tokenizer)
            except (OSError, ValueError) as error:
                reason = str(error).splitlines()[0]
                raise UsageError(
                    f"endpoint.{name}.tokenizer = {config.tokenizer!r}: can't be loaded: {reason}"
                ) from error
        return EndpointSampler(name, config, self.prompt_format, tokenizer)

    def describe(self, role: str = "policy") -> str:
        """Engine and cluster of ``role`` in a few words; "" before its first ``open``."""
        return self._used.get(role, "")

    @property
    def colocated(self) -> bool:
        """Whether workers are on the trainer's GPUs: whoever trains has them ``rest`` meanwhile."""
        return self.places.colocated

    def rest(self) -> None:
        """Have workers that share the trainer's GPUs give the memory back; they wake with the next weights. Nothing may
        be under way."""
        for pool in self._pools.values() if self.colocated else ():
            if not pool.closed:
                pool.sleep()

    def close(self) -> None:
        """End the workers, and Ray where it was started here."""
        for pool in reversed(self._pools.values()):
            pool.close()
        self._pools.clear()
        self.places.close()

    def _choose(self, model: ServedModel) -> tuple[EngineKind, bool]:
        """(engine, whether over Ray)."""
        inline = self.recipe.cluster.kind == "inline"
        return engine_of(self.places, model), not inline and over_ray(self.recipe, self.places.gpus)

    def _spec(self, kind: EngineKind, model: ServedModel, *, ray: bool) -> EngineSpec:
        sampler = self.recipe.sampler
        cache = sampler.kv_cache_gib
        return engine_spec(
            kind,
            model,
            max_rows=sampler.max_rows,
            max_length=sampler.max_length,
            threads=1 if ray else self.threads,
            vllm=VllmOptions(
                kv_cache_bytes=None if cache is None else int(cache * 2**30),
                gpu_memory_utilization=sampler.gpu_memory_utilization,
                tensor_parallel=sampler.tensor_parallel,
                enforce_eager=sampler.enforce_eager,
                sleep_mode=self.colocated,
                beside=self._beside if self.colocated else 0,
                request_seeds=sampler.request_seeds,
                settings=sampler.vllm,
            ),
            experts=bool(experts_in(model.architecture)) and self._asks_for_experts,
        )

    @property
    def _asks_for_experts(self) -> bool:
        """All engines of a run are built alike, so that stages can share them."""
        return any(isinstance(stage, GrpoStage) and stage.asks_for_experts for stage in self.recipe.stage)

    def _packer(self, *, ray: bool, ahead: bool) -> Packer:
        how = self.recipe.sampler.delivery
        # In this process nothing travels, and the frozen weights would be held once more.
        adapter = how == "adapter" or (how == "auto" and ray and self.recipe.trainer.lora is not None)
        return Packer(delta=how == "delta", adapter=adapter, stream=not ahead)

    def _canary(self, model: ServedModel, spec: EngineSpec) -> Canary:
        tolerance = self.recipe.sampler.canary_tolerance
        return Canary(model.vocabulary, spec.longest, spec.dtype, tolerance=tolerance)

    def _cluster(self, *, ray: bool) -> tuple[Cluster, int]:
        collective = self.recipe.sampler.transport == "collective"
        if not ray and collective:
            raise UsageError('sampler.transport = "collective" goes to workers over Ray: set cluster.kind = "ray"')
        if not ray:
            return InlineCluster(RolloutWorker), 1
        # Without GPUs the pools of further roles, which draw while the first waits for them, share the first's cores.
        sharing = any(not pool.closed for pool in self._pools.values())
        places = self.places.take(WORKER, sharing_cores=sharing)
        # NCCL wants a GPU of its own for each member, and the sender's weights on one.
        backend: Backend = "nccl" if places.need.gpus >= 1 and not self.colocated else "gloo"
        # With ranks this process has no GPU that is not theirs or a worker's.
        here: Backend = backend if self.places.plan.ranks is None and torch.cuda.is_available() else "gloo"
        # Longer than the pool waits for a worker that hangs: the pool's end of it is the quicker one.
        group = GroupOptions(backend=backend, here=here, seconds=2 * self.recipe.cluster.worker_timeout)
        found = RayCluster(RayOptions(group=group if collective else None), places=places)
        return found, found.workers


def engine_of(places: RunPlaces, model: ServedModel) -> EngineKind:
    """What draws with ``model`` in a run of ``places``. Raises UsageError where the recipe says vLLM, which can't run
    the model here."""
    recipe = places.recipe
    gpus = 0.0 if recipe.cluster.kind == "inline" else places.gpus
    engine, why_not = recipe.sampler.engine, why_not_vllm(model, on_gpu=gpus > 0)
    if engine == "vllm" and why_not:
        raise UsageError(f'sampler.engine = "vllm": {why_not}; install it (docs/cluster.md) or say "transformers"')
    if engine == "auto":
        # On a CPU vLLM's work for each token outweighs its kernels until a model is larger than CPUs train
        # (docs/rollouts.md has the measurement), so it is for the asking there.
        fits = gpus > 0 and not why_not and installed("ray")
        engine = "vllm" if fits else "transformers"
    return engine
