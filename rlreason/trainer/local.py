"""A trainer in this process, on one device. See ``trainer.protocol`` for what each method promises."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlreason.errors import UsageError
from rlreason.objective.batch import Batch
from rlreason.objective.dispatch import step_advantages
from rlreason.objective.distillation.teacher import OutputHead
from rlreason.objective.scores import with_advantages
from rlreason.policy.attention import set_attention
from rlreason.policy.batch import make_batches
from rlreason.policy.logprobs import takes_packed
from rlreason.policy.lora import ADAPTER_FOLDER, adapter_off, add_adapter, merged_weights, save_adapter
from rlreason.policy.model import count_parameters
from rlreason.policy.policies import Policy
from rlreason.routing import RoutedPass, check_routing, find_routers, widen_biases
from rlreason.trainer.adapted import ModelWeights
from rlreason.trainer.bias import RouterBias
from rlreason.trainer.counts import Counts
from rlreason.trainer.experts import hold_still, routed_pass, routed_rows
from rlreason.trainer.forward import loss_logprobs
from rlreason.trainer.masters import Masters
from rlreason.trainer.microbatches import accumulate_gradients
from rlreason.trainer.optimizer import PolicyOptimizer
from rlreason.trainer.options import (
    TrainerOptions,
    check_wide,
    checkpoint_activations,
    of_tokens,
    sent_wide,
    switch_noise_off,
    why_not_repeatable,
)
from rlreason.trainer.protocol import Loss, LossSums, Models, Routed, StepStats, give_back
from rlreason.trainer.states import StateNote, load_state, save_state, take_weights
from rlreason.trainer.streaming import write_folder
from rlreason.types import TrainingSample
from rlreason.wide_routers import wide_names, widen_routers


class LocalTrainer:
    """``Trainer`` with one model on one device.

    Takes ``policy`` over: its parameters become float32 masters, and the model computes in ``options.compute_dtype``.
    ``reference``: keep a frozen copy of the weights as they are now. Dropout is off, so that a run can be repeated bit
    for bit and the ratio of an on-policy token is 1.
    """

    def __init__(
        self, policy: Policy, options: TrainerOptions, *, reference: bool = False, teachers: Sequence[Policy] = ()
    ) -> None:
        self._policy = policy
        self._options = options
        switch_noise_off(policy.model)
        why_not = why_not_repeatable(policy.model)
        if why_not:
            raise UsageError(why_not)
        set_attention(policy.model, options.attention, policy.model.device)
        if options.lora is not None:
            add_adapter(policy.model, options.lora)
        if options.activation_checkpointing:
            checkpoint_activations(policy.model)
        widen_biases(policy.model)
        if options.widens:
            widen_routers(policy.model)
        find_routers(policy.model)  # asked now, as micro-batches come from several threads
        if options.routing:
            check_routing(policy.model, options.routing)
        check_wide(policy.model)
        self._bias = RouterBias(policy.model, options.router_bias_update)
        self._masters = Masters(policy.model, options.compute_dtype)
        self._optimizer = PolicyOptimizer(self._masters, options.optimizer, options.total_steps, options.max_skipped)
        # With an adapter the reference is the model without it.
        self._reference = policy.frozen_copy() if reference and options.lora is None else None
        self._renewed = False
        self._counts = Counts()
        self._base_is_reference = reference and options.lora is not None
        self._models = Models(
            policy=policy.model,
            teachers=tuple(one.freeze() for one in teachers),
            router_aux_loss=options.router_aux_loss,
        )

    @property
    def architecture(self) -> Mapping[str, object]:
        """See ``Trainer.architecture``."""
        return self._policy.architecture

    @property
    def dtype(self) -> str:
        """See ``Trainer.dtype``."""
        return self._policy.dtype

    @property
    def router_dtype(self) -> str:
        """See ``Trainer.router_dtype``."""
        return self._options.router_dtype

    @property
    def vocabulary(self) -> int:
        """See ``Trainer.vocabulary``."""
        return self._policy.vocabulary

    @property
    def tokenizer(self) -> Any:
        """See ``Trainer.tokenizer``."""
        return self._policy.tokenizer

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """See ``Trainer.stop_ids``."""
        return self._policy.stop_ids

    @property
    def parameters(self) -> tuple[int, int]:
        """See ``Trainer.parameters``."""
        return count_parameters(self._policy.model)

    @property
    def counts(self) -> Counts:
        """See ``Trainer.counts``."""
        return self._counts

    @property
    def rounded(self) -> float:
        """See ``Trainer.rounded``."""
        return self._masters.rounded

    @property
    def model(self) -> PreTrainedModel:
        """The model itself, for diagnosis in this process; stages don't touch it."""
        return self._policy.model

    def forward_backward(self, samples: Sequence[TrainingSample], loss: Loss) -> LossSums:
        """See ``Trainer.forward_backward``."""
        model = self._policy.model
        self._counts.trained.add(samples)
        model.train()
        packed = loss.takes_packed and all(takes_packed(one) for one in self._models.teachers)
        batches = self._batches(samples, packed=packed)
        if loss.scores is not None:
            advantages_N = step_advantages(loss.scores, model.device)
            batches = [with_advantages(batch, advantages_N) for batch in batches]
        outputs = accumulate_gradients(
            model, self._masters, batches, lambda batch: loss(self._models, batch), self._threads
        )
        sums = LossSums()
        for output in outputs:
            sums.add(output)
        self._bias.count(sums.experts)
        return sums

    @property
    def _threads(self) -> int:
        """peft swaps the weights of experts while it computes them, so that two threads would meet there."""
        lora = self._options.lora
        return 1 if lora is not None and lora.experts else self._options.threads

    def step(self, step: int) -> StepStats:
        """See ``Trainer.step``."""
        hold_still(self._masters, self._policy.model, self._options, step)
        stats = self._optimizer.step(step)
        self._bias.step(skipped=stats.skipped)
        return stats

    def logprobs(
        self,
        samples: Sequence[TrainingSample],
        temperature: float = 1.0,
        of: Literal["policy", "reference"] = "policy",
        *,
        replay: bool = False,
    ) -> list[npt.NDArray[np.float32]]:
        """See ``Trainer.logprobs``."""
        model = self._policy.model
        self._counts.scored.add(samples)
        if of == "reference" and self._base_is_reference:
            with adapter_off(model):
                return self._logprobs(model, samples, temperature)
        if of == "reference":
            assert self._reference is not None, "the trainer was made without a reference"
            return self._logprobs(self._reference, samples, temperature)
        return self._logprobs(model, samples, temperature, replay=replay)

    def renew_reference(self) -> None:
        """See ``Trainer.renew_reference``."""
        assert self._reference is not None, "the trainer was made without a reference of its own"
        take_weights(self._reference, self._policy.model)
        self._renewed = True

    def _logprobs(
        self, model: PreTrainedModel, samples: Sequence[TrainingSample], temperature: float, *, replay: bool = False
    ) -> list[npt.NDArray[np.float32]]:
        found: list[npt.NDArray[np.float32]] = [np.zeros(0, dtype=np.float32)] * len(samples)
        for batch in self._batches(samples):
            routed = routed_pass(model, batch, replay=True) if replay else None
            logprobs_BT = loss_logprobs(model, batch, temperature, routed).cpu().numpy()
            for row, place in enumerate(batch.places):
                found[place] = of_tokens(logprobs_BT[row], samples[place], whole=batch.packing is None)
        return found

    def routed_logprobs(self, samples: Sequence[TrainingSample], temperature: float = 1.0) -> list[Routed]:
        """See ``Trainer.routed_logprobs``."""
        model, found = self._policy.model, {}
        self._counts.scored.add(samples)
        check_routing(model, "routing replay")
        for batch in self._batches(samples):
            routed = RoutedPass()
            logprobs_BT = loss_logprobs(model, batch, temperature, routed).cpu().numpy()
            found.update(routed_rows(logprobs_BT, routed, batch, samples))
        return [found[place] for place in range(len(samples))]

    def teach(self, heads: Sequence[OutputHead]) -> None:
        """See ``Trainer.teach``."""
        self._models = replace(self._models, heads=tuple(one.on(self._policy.model.device) for one in heads))

    def weights(self) -> Iterable[tuple[str, Tensor]]:
        """See ``Trainer.weights``; of an adapter merged, the base untouched."""
        model, options = self._policy.model, self._options
        wide = sent_wide(model, options)
        if options.lora is not None:
            return ModelWeights(model, options.compute_dtype, _here, wide)
        if wide == wide_names(model):
            return self._policy.weights()
        return merged_weights(model, options.compute_dtype, _here, wide=wide)

    def expectations(self, prompts: Sequence[tuple[int, ...]]) -> tuple[Tensor, ...]:
        """See ``Trainer.expectations``."""
        return self._policy.expectations(prompts)

    def save_state(self, folder: Path) -> None:
        """See ``Trainer.save_state``: safetensors, which hold nothing that runs when they are read."""
        note = StateNote(
            ranks=0,
            skipped_in_a_row=self._optimizer.skipped_in_a_row,
            dtype=self._options.written,
            computed=self.dtype,
            base=self._policy.model.name_or_path or None,
            lora=self._options.lora,
        )
        reference = self._reference if self._renewed else None
        save_state(folder, self._policy, self._masters, self._optimizer, note, reference)

    def load_state(self, folder: Path) -> None:
        """See ``Trainer.load_state``: of a trainer in one process, or of any number of ranks."""
        self._renewed = load_state(folder, self._policy.model, self._masters, self._optimizer, self._reference)

    def save(self, folder: Path) -> None:
        """See ``Trainer.save``."""
        dtype = self._options.checkpoint_dtype or self._options.compute_dtype
        if self._options.lora is not None:
            self._save_merged(folder, dtype)
            return
        with self._masters.in_model(dtype):
            self._policy.save(folder)

    def _save_merged(self, folder: Path, dtype: torch.dtype) -> None:
        """The merged model, and the adapter beside it in peft's format."""
        model = self._policy.model
        model.config.dtype = dtype
        with self._masters.in_model(torch.float32):
            write_folder(self._policy, ((name, one.cpu()) for name, one in merged_weights(model, dtype, _here)), folder)
            save_adapter(model, folder / ADAPTER_FOLDER, _here, base=model.name_or_path or None)

    def rest(self) -> None:
        """See ``Trainer.rest``."""
        give_back()

    def close(self) -> None:
        """See ``Trainer.close``: nothing outside of this process."""

    def _batches(self, samples: Sequence[TrainingSample], *, packed: bool = True) -> list[Batch]:
        model = self._policy.model
        if not samples:
            return []
        return make_batches(
            samples,
            self._options.micro_batch_tokens,
            self._policy.pad_id,
            model.device,
            packed=packed and takes_packed(model),
        )


def _here(tensor: Tensor) -> Tensor:
    """Whole already: no shards."""
    return tensor
