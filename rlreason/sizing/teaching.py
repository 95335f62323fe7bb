"""What a teacher takes that scores in a process of its own: memory of its one GPU, operations of its forward passes.

T = positions of a micro-batch, V = words, H = hidden size, d = bytes of the dtype. In transformers
(``trainer.teachers``) it holds its weights, what one layer's forward pass needs at most, logits of 256 loss tokens at a
time in float32 and three tables of them in float64, and where it sends states T of them in its dtype and in float32.
Behind vLLM (``sampler.vllm_teacher``) it holds its weights, keys and values of one row at least, and whole logits of a
step's 2,048 tokens, 6 bytes each.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlreason.sizing.activations import Activations, MicroBatch
from rlreason.sizing.engine import cache_bytes
from rlreason.sizing.flops import forward_packed, pass_of
from rlreason.sizing.memory import Memory, Part
from rlreason.sizing.shape import ModelShape

#: ``trainer.teachers._ROWS``, and bytes of each of their logits.
HEAD_ROWS, LOGIT = 256, 4 + 3 * 8
#: ``sampler.vllm_teacher.STEP_TOKENS``, and bytes of each of their logits.
STEP_TOKENS, STEP_LOGIT = 2048, 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """What a teacher scores of a step: ``rows`` completions, in micro-batches such as ``batch``."""

    rows: float
    batch: MicroBatch

    @property
    def micro_batches(self) -> float:
        """How many of them, of rows that are alike."""
        return self.rows / self.batch.rows


def scorer_memory(
    shape: ModelShape, width: int, batch: MicroBatch, activations: Activations, *, states: bool
) -> Memory:
    """Of a teacher in transformers; ``activations``: of a forward pass alone. ``states``: it sends those."""
    head = HEAD_ROWS * LOGIT * shape.vocabulary
    sent = batch.tokens * shape.hidden * (width + 4) if states else 0
    return Memory(
        parts=(
            Part(name="weights", bytes=width * shape.total),
            Part(name="work space", bytes=activations.kept + max(activations.peak - activations.kept, head + sent)),
        )
    )


def engine_memory(shape: ModelShape, width: int, longest: int) -> Memory:
    """Of a teacher behind vLLM, whose engine takes rows of ``longest`` tokens."""
    return Memory(
        parts=(
            Part(name="weights", bytes=width * shape.total),
            Part(name="keys and values of a row", bytes=cache_bytes(shape, longest, width)),
            Part(name="work space", bytes=STEP_TOKENS * STEP_LOGIT * shape.vocabulary),
        )
    )


def scorer_flops(shape: ModelShape, scored: Scored, *, flex: bool) -> float:
    """Of a teacher in transformers, which computes a prompt once for all answers of a micro-batch."""
    return scored.micro_batches * forward_packed(shape, scored.batch, flex=flex).total


def engine_flops(shape: ModelShape, scored: Scored) -> float:
    """Of a teacher behind vLLM, which computes every row and the logits of every token."""
    length = scored.batch.prompt + scored.batch.completion
    return pass_of(shape, scored.rows * length, scored.rows * length**2 / 2, scored.rows * length).total
