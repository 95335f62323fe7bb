"""A trainer in this process, on one device. See ``trainer.protocol`` for what each method promises."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlreason.errors import UsageError
from rlreason.objective.batch import Batch
from rlreason.policy.batch import make_batches
from rlreason.policy.logprobs import takes_packed
from rlreason.policy.lora import ADAPTER_FOLDER, adapter_off, add_adapter, merged_weights, save_adapter
from rlreason.policy.model import count_parameters
from rlreason.policy.policies import Policy
from rlreason.trainer.forward import loss_logprobs
from rlreason.trainer.masters import Masters
from rlreason.trainer.microbatches import accumulate_gradients
from rlreason.trainer.optimizer import PolicyOptimizer
from rlreason.trainer.options import TrainerOptions, checkpoint_activations, of_tokens, switch_dropout_off
from rlreason.trainer.protocol import Loss, LossSums, Models, StepStats
from rlreason.trainer.streaming import write_folder
from rlreason.types import TrainingSample

PARAMETERS, OPTIMIZER, COUNTERS = "parameters.safetensors", "optimizer.safetensors", "trainer.json"


class LocalTrainer:
    """``Trainer`` with one model on one device.

    Takes ``policy`` over: its parameters become float32 masters, and the model computes in ``options.compute_dtype``.
    ``reference``: keep a frozen copy of the weights as they are now. Dropout is off, so that a run can be repeated bit
    for bit and the ratio of an on-policy token is 1.
    """

    def __init__(
        self, policy: Policy, options: TrainerOptions, *, reference: bool = False, teacher: Policy | None = None
    ) -> None:
        self._policy = policy
        self._options = options
        switch_dropout_off(policy.model)
        if options.lora is not None:
            add_adapter(policy.model, options.lora)
        if options.activation_checkpointing:
            checkpoint_activations(policy.model)
        self._masters = Masters(policy.model, options.compute_dtype)
        self._optimizer = PolicyOptimizer(self._masters, options.optimizer, options.total_steps, options.max_skipped)
        # With an adapter the reference is the model without it.
        self._reference = policy.frozen_copy() if reference and options.lora is None else None
        self._base_is_reference = reference and options.lora is not None
        self._models = Models(
            policy=policy.model,
            teacher=None if teacher is None else teacher.freeze(),
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
        model.train()
        batches = self._batches(samples, packed=loss.takes_packed)
        outputs = accumulate_gradients(
            model, self._masters, batches, lambda batch: loss(self._models, batch), self._threads
        )
        sums = LossSums()
        for output in outputs:
            sums.add(output)
        return sums

    @property
    def _threads(self) -> int:
        """peft swaps the weights of experts while it computes them, so that two threads would meet there."""
        lora = self._options.lora
        return 1 if lora is not None and lora.experts else self._options.threads

    def step(self, step: int) -> StepStats:
        """See ``Trainer.step``."""
        return self._optimizer.step(step)

    def logprobs(
        self,
        samples: Sequence[TrainingSample],
        temperature: float = 1.0,
        of: Literal["policy", "reference"] = "policy",
    ) -> list[npt.NDArray[np.float32]]:
        """See ``Trainer.logprobs``."""
        model = self._policy.model
        if of == "reference" and self._base_is_reference:
            with adapter_off(model):
                return self._logprobs(model, samples, temperature)
        if of == "reference":
            assert self._reference is not None, "the trainer was made without a reference"
            model = self._reference
        return self._logprobs(model, samples, temperature)

    def _logprobs(
        self, model: PreTrainedModel, samples: Sequence[TrainingSample], temperature: float
    ) -> list[npt.NDArray[np.float32]]:
        found: list[npt.NDArray[np.float32]] = [np.zeros(0, dtype=np.float32)] * len(samples)
        for batch in self._batches(samples):
            logprobs_BT = loss_logprobs(model, batch, temperature).cpu().numpy()
            for row, place in enumerate(batch.places):
                found[place] = of_tokens(logprobs_BT[row], samples[place], whole=batch.packing is None)
        return found

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """See ``Trainer.weights``; of an adapter merged, the base untouched."""
        if self._options.lora is not None:
            return merged_weights(self._policy.model, self._options.compute_dtype, _here)
        return self._policy.weights()

    def expectations(self, prompts: Sequence[tuple[int, ...]]) -> tuple[Tensor, ...]:
        """See ``Trainer.expectations``."""
        return self._policy.expectations(prompts)

    def save_state(self, folder: Path) -> None:
        """See ``Trainer.save_state``: safetensors, which hold nothing that runs when they are read."""
        masters = zip(self._masters.names, self._masters.parameters, strict=True)
        tensors = {name: one.detach() for name, one in masters}
        tensors |= {f"{_BUFFER}{name}": one.clone() for name, one in _buffers(self._policy.model)}
        save_file(_ready(tensors), folder / PARAMETERS)
        save_file(_ready(self._optimizer.state()), folder / OPTIMIZER)
        counters = {"skipped_in_a_row": self._optimizer.skipped_in_a_row}
        (folder / COUNTERS).write_text(json.dumps(counters) + "\n", encoding="utf-8")

    @torch.no_grad()
    def load_state(self, folder: Path) -> None:
        """See ``Trainer.load_state``."""
        if not (folder / PARAMETERS).is_file():
            raise UsageError(f"{folder} is the state of a sharded trainer: go on with trainer.ranks of 1 or more")
        saved = load_file(folder / PARAMETERS)
        own: dict[str, Tensor] = dict(zip(self._masters.names, self._masters.parameters, strict=True))
        own |= {f"{_BUFFER}{name}": one for name, one in _buffers(self._policy.model)}
        differs = sorted(own.keys() ^ saved.keys())
        differs += [name for name in own if name in saved and own[name].shape != saved[name].shape]
        if differs:
            raise UsageError(f"{folder} is the state of another model: {differs[0]} differs")
        for name, one in own.items():
            one.copy_(saved[name])
        self._masters.round_into_model()
        self._optimizer.load_state(load_file(folder / OPTIMIZER))
        counters = json.loads((folder / COUNTERS).read_text(encoding="utf-8"))
        self._optimizer.skipped_in_a_row = counters["skipped_in_a_row"]

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
            save_adapter(model, folder / ADAPTER_FOLDER, _here)

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


_BUFFER = "buffer."


def _here(tensor: Tensor) -> Tensor:
    """Whole already: no shards."""
    return tensor


def _buffers(model: nn.Module) -> list[tuple[str, Tensor]]:
    """What the model keeps beside parameters, such as DeepSeek's correction bias of its router."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return [(name, one) for name, one in model.state_dict().items() if name not in parameters]


def _ready(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As safetensors wants them: contiguous."""
    return {name: one.contiguous() for name, one in tensors.items()}
