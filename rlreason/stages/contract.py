"""The log-prob contract: what a sampler says of its tokens must be what the trainer computes of them.

log π of a token is that of softmax(logits / temperature) over the tokens that could be drawn: *processed*, as drawn,
not the model's raw distribution. Engines differ in what they report (vLLM's own default is raw), so before a stage
learns from its first groups the trainer scores some of their tokens, of the very weights that it holds, and where
another reading fits them far better the run is refused: every ratio of the run would be wrong by it.

The dtype of weights and head is held by the canary of deliveries, at 5e-5 in float32; what is left in bfloat16 (an
engine rounds its logits, the trainer's head is float32) is rounding, which the objective's correction is for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from rlreason.config import GrpoStage
from rlreason.errors import UsageError
from rlreason.policy.batch import rollout_sample, trained_tokens
from rlreason.trainer.protocol import Trainer
from rlreason.types import Completion, Group, TrainingSample

#: Tokens that are scored.
MOST_TOKENS = 512
#: Mean difference, in nats, below which nothing is asked: that of bfloat16's rounding is about as large.
ROUNDING = 0.02
#: Another reading is believed where it leaves at most this share of the difference.
EXPLAINED = 0.5


@dataclass(slots=True)
class LogprobContract:
    """Held once for each process that runs a stage. Example: ``LogprobContract().hold(0, groups, stage, trainer)``."""

    #: Whether tokens of the trainer's own weights have been looked at.
    settled: bool = False

    def hold(self, step: int, groups: Sequence[Group], stage: GrpoStage, trainer: Trainer) -> None:
        """Compare tokens that version ``step``, which the trainer holds, has drawn; where there are none yet, with
        staleness, the next step is asked. Raises UsageError where another reading fits them."""
        if self.settled:
            return
        drawn = [one for group in groups for one in group.completions_G if _is_of(one, step)]
        taken = _taken(drawn)
        if taken:
            self.settled = True
            _compare([rollout_sample(one) for one in taken], stage, trainer)


def _is_of(completion: Completion, version: int) -> bool:
    """Whether these weights drew all of it, and said so."""
    if completion.sampler_logprobs is None or not trained_tokens(completion).any():
        return False
    return bool((completion.policy_versions == version).all())


def _taken(completions: Sequence[Completion]) -> list[Completion]:
    """The first of them, up to ``MOST_TOKENS`` tokens, one at least."""
    taken: list[Completion] = []
    tokens = 0
    for one in completions:
        tokens += len(one.token_ids)
        if taken and tokens > MOST_TOKENS:
            break
        taken.append(one)
    return taken


def _compare(samples: list[TrainingSample], stage: GrpoStage, trainer: Trainer) -> None:
    replay = stage.routing_replay == "rollout"

    def away(rows: list[TrainingSample], temperature: float) -> float:
        found = trainer.logprobs(rows, temperature, replay=replay)
        pairs = zip(found, samples, strict=True)
        return float(np.concatenate([np.abs(one - row.sampler_logprobs)[row.loss_mask] for one, row in pairs]).mean())

    as_drawn = away(samples, stage.temperature)
    if as_drawn <= ROUNDING:
        return
    whole = [replace(one, sampled_from=None) for one in samples]
    readings = {}
    if stage.temperature != 1.0:
        readings["temperature 1"] = (samples, 1.0)
    if samples[0].sampled_from is not None and samples[0].sampled_from.whole:
        readings["no cut by top_p, top_k or min_p"] = (whole, stage.temperature)
        if stage.temperature != 1.0:
            readings["temperature 1 and no cut: the raw distribution"] = (whole, 1.0)
    apart = {name: away(*how) for name, how in readings.items()}
    best = min(apart, key=lambda name: apart[name], default="")
    if best and apart[best] <= EXPLAINED * as_drawn:
        raise UsageError(
            f"stage.{stage.name}: the sampler's log-probabilities are {as_drawn:.3g} nats off the trainer's at "
            f"temperature = {stage.temperature:g}{_cut(stage)}, and {apart[best]:.3g} off at {best}. They must be of "
            'the distribution that was drawn from ("processed"), or every ratio is wrong: have the engine report '
            'those (vLLM: logprobs_mode = "processed_logprobs", which rlreason sets), or draw at temperature = 1 '
            "without top_p, top_k and min_p, where the two are the same"
        )


def _cut(stage: GrpoStage) -> str:
    cuts = {"top_p": (stage.top_p, 1.0), "top_k": (stage.top_k, 0), "min_p": (stage.min_p, 0.0)}
    return "".join(f", {name} = {value:g}" for name, (value, off) in cuts.items() if value != off)
