"""Which engine and cluster a run draws with, and its pools of rollout workers: one a role, for all of its stages."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from transformers import AutoTokenizer

from rlreason.config import Recipe
from rlreason.cores import usable_cores
from rlreason.data.prompts import PromptFormat
from rlreason.delivery.group import Backend, GroupOptions
from rlreason.delivery.packing import Packer
from rlreason.errors import UsageError
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
    #: By role, in the order in which they were opened.
    _pools: dict[str, RolloutPool] = field(default_factory=dict, init=False)
    #: What ``describe`` says.
    _used: dict[str, str] = field(default_factory=dict, init=False)

    def open(self, model: ServedModel, *, role: str = "policy", version: int = 0) -> PoolSampler:
        """A sampler that holds the model's weights as ``version``. It takes over the workers of the one opened before
        in the same role, which is no longer valid.

        Raises UsageError where the recipe names an engine or a cluster that is not there.
        """
        kind, ray = self._choose(model)
        spec = self._spec(kind, model, ray=ray)
        canary = self._canary(model, spec) if self.recipe.sampler.canary else None
        packer = Packer(delta=self.recipe.sampler.delivery == "delta")
        if role in self._pools and not self._pools[role].closed:
            self._pools[role].follow(spec, canary, packer)
        else:
            cluster, workers = self._cluster(ray=ray)
            patience = Patience(working=self.recipe.cluster.worker_timeout)
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

    def close(self) -> None:
        """End the workers, and Ray where it was started here."""
        for pool in reversed(self._pools.values()):
            pool.close()
        self._pools.clear()

    def _choose(self, model: ServedModel) -> tuple[EngineKind, bool]:
        """(engine, whether over Ray)."""
        engine, cluster = self.recipe.sampler.engine, self.recipe.cluster.kind
        why_not = why_not_vllm(model)
        if engine == "vllm" and why_not:
            raise UsageError(f'sampler.engine = "vllm": {why_not}; install it (docs/cluster.md) or say "transformers"')
        if engine == "auto":
            # On a CPU vLLM's work for each token outweighs its kernels until a model is larger than CPUs train
            # (docs/rollouts.md has the measurement), so it is for the asking there.
            fits = torch.cuda.is_available() and not why_not and cluster != "inline" and installed("ray")
            engine = "vllm" if fits else "transformers"
        over_ray = cluster == "ray" or (cluster == "auto" and engine == "vllm" and installed("ray"))
        return engine, over_ray

    def _spec(self, kind: EngineKind, model: ServedModel, *, ray: bool) -> EngineSpec:
        sampler, cluster = self.recipe.sampler, self.recipe.cluster
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
                sleep_mode=cluster.colocate,
                request_seeds=sampler.request_seeds,
                settings=sampler.vllm,
            ),
        )

    def _canary(self, model: ServedModel, spec: EngineSpec) -> Canary:
        tolerance = self.recipe.sampler.canary_tolerance
        return Canary(model.vocabulary, spec.longest, spec.dtype, tolerance=tolerance)

    def _cluster(self, *, ray: bool) -> tuple[Cluster, int]:
        collective = self.recipe.sampler.transport == "collective"
        if not ray and collective:
            raise UsageError('sampler.transport = "collective" goes to workers over Ray: set cluster.kind = "ray"')
        if not ray:
            return InlineCluster(RolloutWorker), 1
        cluster = self.recipe.cluster
        gpus = torch.cuda.device_count()
        each = cluster.gpus_per_worker
        if each is None:
            each = float(self.recipe.sampler.tensor_parallel) if gpus else 0.0
        workers = cluster.rollout_workers or (0 if each else usable_cores())
        # Without GPUs the pools of further roles, which draw while the first waits for them, share the first's cores.
        shares = not each and any(not pool.closed for pool in self._pools.values())
        cpus = 0.0 if shares else cluster.cpus_per_worker
        # A trainer in this process holds its first GPU, unless the workers are to share that.
        own = not self.recipe.trainer.ranks and not cluster.colocate
        # NCCL wants a GPU of its own for each member, and the sender's weights on one.
        backend: Backend = "nccl" if each >= 1 and not cluster.colocate and torch.cuda.is_available() else "gloo"
        # Longer than the pool waits for a worker that hangs: the pool's end of it is the quicker one.
        group = GroupOptions(backend=backend, seconds=2 * cluster.worker_timeout)
        options = RayOptions(
            address=cluster.address,
            workers=workers,
            own_gpu=own,
            cpus=cpus,
            gpus=each,
            spread=cluster.spread,
            group=group if collective else None,
        )
        found = RayCluster(options)
        return found, found.workers
