"""A rollout worker that says what its vLLM was built with; in a file that workers of Ray find."""

from __future__ import annotations

from rlreason.sampler.worker import RolloutWorker


class Asked(RolloutWorker):
    """Says what its vLLM was built with."""

    def built_with(self) -> tuple[int, bool]:
        """(max_num_batched_tokens, enable_prefix_caching)."""
        config = self._engine._llm.llm_engine.vllm_config  # type: ignore[union-attr]
        return config.scheduler_config.max_num_batched_tokens, config.cache_config.enable_prefix_caching
