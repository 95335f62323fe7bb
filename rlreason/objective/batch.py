"""Tensors of one micro-batch: what the model reads, what the loss reads.

B = rows, T = positions, L = packed tokens, G = prompts, P = longest prompt, S = positions that a row computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
from torch import Tensor

from rlreason.objective.token_rows import TokenRows


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """Where the tokens of a packed micro-batch are: all prompts, each once, then what each row adds to its prompt.

    Example for prompts (5, 6) and (7,), continued by two rows of 3 tokens and one of 1, none of which computes its
    last: tokens 5 6 7 a b c d, ``positions_L == (0, 1, 0, 2, 3, 2, 3)``, ``prompt_at_GP == ((0, 1), (2, 0))``,
    ``prompt_lengths_G == (2, 1)``, ``prompt_of_B == (0, 0, 1)``, ``row_at_BS == ((3, 4), (5, 6), (0, 0))``,
    ``source_BT == ((1, 3, 4), (1, 5, 6), (2, 0, 0))``, ``longest == 4``. Places past the end of a prompt or row are 0.
    """

    positions_L: Tensor
    prompt_at_GP: Tensor
    prompt_lengths_G: Tensor
    prompt_of_B: Tensor
    row_at_BS: Tensor
    #: Place of each token in the table of prompts, flattened, followed by that of rows.
    back_L: Tensor
    #: Place of the state that predicts each target.
    source_BT: Tensor
    #: Tokens of the longest row with its prompt, of those that are computed.
    longest: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherTable:
    """What a teacher elsewhere said of the targets: ``TrainingSample.teacher``, [B, T, …], 0 behind a row's end."""

    states_BTH: Tensor | None = None
    ids_BTK: Tensor | None = None
    logprobs_BTK: Tensor | None = None
    log_tail_BT: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Tensors of one micro-batch, already shifted: row b predicts ``targets_BT[b, t]`` in column t, right-padded.

    Example: ``batch.targets_BT.shape == (8, 41)``; ``batch.loss_mask_BT`` is float32 0/1 over targets;
    ``batch.advantages_BT[b, t]`` and ``batch.weights_BT[b, t]`` are those of target t, 0 where masked.
    """

    #: What the model reads: whole rows, [B, T]; or packed tokens, [1, L], and then the rows are completions only.
    token_ids_BT: Tensor
    targets_BT: Tensor
    loss_mask_BT: Tensor
    sampler_logprobs_BT: Tensor
    advantages_BT: Tensor
    weights_BT: Tensor
    #: See ``TrainingSample``; None where the samples have none.
    old_logprobs_BT: Tensor | None = None
    reference_logprobs_BT: Tensor | None = None
    teacher_logprobs_BT: Tensor | None = None
    teacher: TeacherTable | None = None
    #: uint8 [N, L, K]: experts that each input token is to be sent to, or was, in the order of ``token_ids_BT``; 255 in
    #: all K: the router's own choice. N = input tokens, L = layers with experts, K = experts per token.
    routed_experts_NLK: Tensor | None = None
    packing: Packing | None = None
    #: Places b·T + t of the loss tokens, int64 [R], known to whoever made the batch. None: to be found from the mask,
    #: which a GPU must be waited for.
    loss_rows_R: Tensor | None = None
    #: What each loss token was drawn from, where the samples say so: if the draws were truncated, log π is over those
    #: tokens alone, and ``centering`` reads their log-probabilities.
    sampled_from: TokenRows | None = None
    #: ``TrainingSample.score_at`` of each row, int64 [B]; None where a row has none.
    score_at_B: Tensor | None = None
    #: Place of each row in what was cut into micro-batches.
    places: tuple[int, ...] = ()
    #: Of each row, place among the input tokens of the one that predicts each token of its sample; −1 for the first,
    #: which none predicts. On the host.
    predicted_by: tuple[npt.NDArray[np.int64], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertCounts:
    """Where a model with experts sent the tokens that carry loss, added up over micro-batches and ranks.

    Example: ``ExpertCounts(chosen=1, load_LE=tensor([[3, 1]]), compared_L=tensor([4]), agreed_L=tensor([4]))``.
    L = layers with experts, E = experts; int64.
    """

    #: Experts that each token goes to.
    chosen: int
    #: How often each expert was chosen.
    load_LE: Tensor
    #: Tokens whose experts somebody else had chosen, too (the sampler, or the pass before the updates), and those of
    #: them for which the router's own choice now is the same set.
    compared_L: Tensor
    agreed_L: Tensor

    def __add__(self, other: ExpertCounts) -> ExpertCounts:
        return ExpertCounts(
            chosen=self.chosen,
            load_LE=self.load_LE + other.load_LE,
            compared_L=self.compared_L + other.compared_L,
            agreed_L=self.agreed_L + other.agreed_L,
        )

    def cpu(self) -> ExpertCounts:
        """The same in main memory."""
        return replace(self, load_LE=self.load_LE.cpu(), compared_L=self.compared_L.cpu(), agreed_L=self.agreed_L.cpu())


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOutput:
    """A scalar loss to call ``backward()`` on, and detached sums and maxima for the metrics.

    Example: ``LossOutput(loss=tensor(0.31), sums={"clip_fraction": tensor(12.0)}, maxima={"ratio/max": tensor(1.3)})``;
    divide a sum by the global token count to get the mean.
    """

    loss: Tensor
    sums: Mapping[str, Tensor]
    maxima: Mapping[str, Tensor] = field(default_factory=dict)
    #: Of models with experts whose routers can be followed.
    experts: ExpertCounts | None = None
    #: With the balancing loss of experts in it: squared norms of that loss' gradient and of the rest's with respect to
    #: each layer's router logits, [L, 2] float64; 0 until the backward pass is over.
    balance_L2: Tensor | None = None
