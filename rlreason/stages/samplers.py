"""Which engine and cluster a run draws with, and one pool of rollout workers that serves all of its stages."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import torch

from rlreason.config import Recipe
from rlreason.data.prompts import PromptFormat
from rlreason.errors import UsageError
from rlreason.policy.policies import Policy
from rlreason.sampler.canary import Canary
from rlreason.sampler.delivery import Packer
from rlreason.sampler.handles import Cluster, InlineCluster, RayCluster, RayOptions
from rlreason.sampler.jobs import EngineKind, EngineSpec, VllmOptions
from rlreason.sampler.open import engine_spec, installed, why_not_vllm
from rlreason.sampler.pool import Patience, RolloutPool
from rlreason.sampler.pool_sampler import PoolSampler
from rlreason.sampler.worker import RolloutWorker


@dataclass(slots=True)
class Samplers:
    """Opens samplers for the models of one run. The workers stay; only weights and, where a model has another shape,
    engines change."""

    recipe: Recipe
    prompt_format: PromptFormat
    #: CPU threads of an inline engine.
    threads: int
    _pool: RolloutPool | None = field(default=None, init=False)
    #: What ``describe`` says.
    _used: str = field(default="", init=False)

    def open(self, policy: Policy) -> PoolSampler:
        """A sampler that holds the policy's weights as version 0. It takes over the workers of the one before.

        Raises UsageError where the recipe names an engine or a cluster that is not there.
        """
        kind, ray = self._choose(policy)
        spec = self._spec(kind, policy, ray=ray)
        canary = self._canary(policy, spec) if self.recipe.sampler.canary else None
        packer = Packer(delta=self.recipe.sampler.delivery == "delta")
        if self._pool is None:
            cluster, workers = self._cluster(ray=ray)
            patience = Patience(working=self.recipe.cluster.worker_timeout)
            self._pool = RolloutPool(cluster, spec, workers, canary=canary, packer=packer, patience=patience)
            self._used = f"{kind} x {workers} {'over Ray' if ray else 'in this process'}"
        else:
            self._pool.follow(spec, canary, packer)
        sampler = PoolSampler(self._pool, policy.tokenizer, self.prompt_format)
        sampler.publish(policy.model.state_dict(), 0)
        return sampler

    def describe(self) -> str:
        """Engine and cluster in a few words; "" before the first ``open``."""
        return self._used

    def close(self) -> None:
        """End the workers, and Ray where it was started here."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def _choose(self, policy: Policy) -> tuple[EngineKind, bool]:
        """(engine, whether over Ray)."""
        engine, cluster = self.recipe.sampler.engine, self.recipe.cluster.kind
        why_not = why_not_vllm(policy.model)
        if engine == "vllm" and why_not:
            raise UsageError(f'sampler.engine = "vllm": {why_not}; install it (docs/cluster.md) or say "transformers"')
        if engine == "auto":
            # On a CPU vLLM's work for each token outweighs its kernels until a model is larger than CPUs train
            # (docs/rollouts.md has the measurement), so it is for the asking there.
            fits = torch.cuda.is_available() and not why_not and cluster != "inline" and installed("ray")
            engine = "vllm" if fits else "transformers"
        over_ray = cluster == "ray" or (cluster == "auto" and engine == "vllm" and installed("ray"))
        return engine, over_ray

    def _spec(self, kind: EngineKind, policy: Policy, *, ray: bool) -> EngineSpec:
        sampler, cluster = self.recipe.sampler, self.recipe.cluster
        cache = sampler.kv_cache_gib
        return engine_spec(
            kind,
            policy.model,
            policy.tokenizer,
            max_rows=sampler.max_rows,
            max_length=sampler.max_length,
            threads=1 if ray else self.threads,
            vllm=VllmOptions(
                kv_cache_bytes=None if cache is None else int(cache * 2**30),
                gpu_memory_utilization=sampler.gpu_memory_utilization,
                tensor_parallel=sampler.tensor_parallel,
                enforce_eager=sampler.enforce_eager,
                sleep_mode=cluster.colocate,
            ),
        )

    def _canary(self, policy: Policy, spec: EngineSpec) -> Canary:
        return Canary(policy.model, spec.longest, tolerance=self.recipe.sampler.canary_tolerance)

    def _cluster(self, *, ray: bool) -> tuple[Cluster, int]:
        if not ray:
            return InlineCluster(RolloutWorker), 1
        cluster = self.recipe.cluster
        gpus = torch.cuda.device_count()
        each = cluster.gpus_per_worker
        if each is None:
            each = float(self.recipe.sampler.tensor_parallel) if gpus else 0.0
        workers = cluster.rollout_workers
        if not workers:
            workers = max(1, int((gpus - 1) / each)) if each else (os.cpu_count() or 1)
        options = RayOptions(
            address=cluster.address, workers=workers, cpus=cluster.cpus_per_worker, gpus=each, spread=cluster.spread
        )
        return RayCluster(options), workers
