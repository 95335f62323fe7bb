"""One rank of a trainer whose model is sharded over N: every method is called on all ranks at once.

A rank is given its own samples and computes its own micro-batches; FSDP adds the gradients up. Ranks make the same
number of passes: one that has fewer micro-batches repeats a small one that counts for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedModel

from rlreason.errors import UsageError
from rlreason.objective.batch import Batch, ExpertCounts, LossOutput
from rlreason.objective.dispatch import step_advantages
from rlreason.objective.distillation.teacher import OutputHead
from rlreason.objective.scores import with_advantages
from rlreason.policy.attention import set_attention
from rlreason.policy.batch import make_batches
from rlreason.policy.logprobs import next_logprobs, plain_head, remember, takes_packed
from rlreason.policy.lora import ADAPTER_FOLDER, LoraOptions, adapter_off, add_adapter, merged_weights, save_adapter
from rlreason.policy.model import cast_parameters, count_parameters
from rlreason.policy.policies import Policy
from rlreason.routing import RoutedPass, check_routing, find_routers, remember_routers, widen_biases
from rlreason.trainer.adapted import ModelWeights
from rlreason.trainer.bias import RouterBias
from rlreason.trainer.experts import hold_still, routed_pass, routed_rows
from rlreason.trainer.forward import loss_logprobs
from rlreason.trainer.masters import round_ties
from rlreason.trainer.optimizer import PolicyOptimizer
from rlreason.trainer.options import (
    ModelSource,
    TrainerOptions,
    check_wide,
    checkpoint_activations,
    of_tokens,
    sent_wide,
    switch_noise_off,
    why_not_repeatable,
)
from rlreason.trainer.parallel import Meshes, meshes
from rlreason.trainer.protocol import Loss, LossSums, Models, Routed, StepStats
from rlreason.trainer.sharding import ShardedParameters, cast, fill, inside, shard, whole
from rlreason.trainer.states import StateNote, load_state, save_state, take_weights
from rlreason.trainer.streaming import write_folder
from rlreason.types import TrainingSample
from rlreason.wide_routers import wide_names, widen_routers


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSpec:
    """What all ranks of a trainer are made from."""

    model: ModelSource
    options: TrainerOptions
    #: Keep a frozen copy of the weights that the trainer begins with.
    reference: bool = False
    teachers: tuple[ModelSource, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A rank's samples of a step. ``filler`` is repeated, for nothing, while other ranks have more micro-batches."""

    samples: Sequence[TrainingSample]
    filler: TrainingSample


@dataclass(slots=True)
class RankTrainer:
    """See ``trainer.protocol.Trainer``; the process group is there already."""

    spec: RankSpec
    device: torch.device
    policy: Policy = field(init=False)
    parameter_counts: tuple[int, int] = field(init=False)
    #: See ``Trainer.rounded``; rank 0 knows.
    rounded: float = field(init=False, default=0.0)
    _models: Models = field(init=False)
    _reference: PreTrainedModel | None = field(init=False, default=None)
    _renewed: bool = field(init=False, default=False)
    _trainable: ShardedParameters = field(init=False)
    _optimizer: PolicyOptimizer = field(init=False)
    _bias: RouterBias = field(init=False)
    _meshes: Meshes = field(init=False)

    def __post_init__(self) -> None:
        spec, options = self.spec, self.spec.options
        self._meshes = meshes(self.device.type, options.tensor_parallel, options.expert_parallel)
        # A base that is not trained needs no float32.
        stored = torch.float32 if options.lora is None else options.compute_dtype
        self.policy = self._open(spec.model, stored, options.lora, widen=options.widens)
        self.parameter_counts = count_parameters(self.policy.model)
        if options.routing:
            check_routing(self.policy.model, options.routing)
        check_wide(self.policy.model)
        switch_noise_off(self.policy.model)
        if options.activation_checkpointing:
            checkpoint_activations(self.policy.model)
        if spec.reference and options.lora is None:
            self._reference = self._open(spec.model, spec.model.dtype, widen=options.widens).freeze()
        teachers = tuple(self._open(one, one.dtype).freeze() for one in spec.teachers)
        self._models = Models(policy=self.policy.model, teachers=teachers, router_aux_loss=options.router_aux_loss)
        self._bias = RouterBias(self.policy.model, options.router_bias_update, self._meshes.ranks)
        self._trainable = ShardedParameters(self.policy.model, self._meshes.ranks)
        self._optimizer = PolicyOptimizer(self._trainable, options.optimizer, options.total_steps, options.max_skipped)

    def _open(
        self, model: ModelSource, stored: torch.dtype, lora: LoraOptions | None = None, *, widen: bool = False
    ) -> Policy:
        """A sharded policy, its shards in ``stored``, with ``widen`` its routers' in float32. Rank 0 reads the
        whole one and hands the numbers out."""
        # Routers of an adapter's base have what it is read in; others keep all that the file has.
        read = torch.float32 if widen and lora is None else stored
        source = model.source.load(read, torch.device("cpu")) if dist.get_rank() == 0 else None
        if source is not None and widen:
            widen_routers(source.model)
            cast_parameters(source.model, stored)
        if source is not None and stored == torch.float32 != model.dtype:
            wide = wide_names(source.model)  # the model computes with these as they are
            self.rounded = round_ties([one for name, one in source.model.named_parameters() if name not in wide])
        policy = model.source.inspect()
        widen_biases(policy.model)
        if widen:
            widen_routers(policy.model)
        set_attention(policy.model, self.spec.options.attention, self.device)
        policy.model.config.architectures = [type(policy.model).__name__]  # FSDP gives the class another name
        if lora is not None:
            for one in (policy, source):
                if one is not None:
                    add_adapter(one.model, lora)
        found: list[Any] = [False, False, None, ""]
        if source is not None:
            switch_noise_off(source.model)
            found = [plain_head(source.model) is not None, takes_packed(source.model), find_routers(source.model)]
            found.append(why_not_repeatable(source.model))
        dist.broadcast_object_list(found, src=0, device=self.device)
        if found[3]:
            raise UsageError(found[3])
        rows = self._meshes.of(policy.model)
        shard(cast(policy.model, stored), rows, model.dtype, self.device, offload=self.spec.options.offload)
        fill(policy.model, None if source is None else source.model, rows)
        remember(policy.model, plain=found[0], packed=found[1])
        remember_routers(policy.model, found[2])
        return policy

    def forward_backward(self, share: Share, loss: Loss) -> LossSums:
        """See ``Trainer.forward_backward``: the sums are this rank's."""
        self.policy.model.train()
        sums = LossSums()
        packed = loss.takes_packed and all(takes_packed(one) for one in self._models.teachers)
        # Of the whole step on every rank: a group, or a batch's deviation, may lie on several.
        advantages_N = None if loss.scores is None else step_advantages(loss.scores, self.device)
        for batch, counts in self._batches(share, packed=packed):
            given = batch if advantages_N is None else with_advantages(batch, advantages_N)
            output = self._computed(partial(loss, self._models, given))
            (output.loss if counts else output.loss * 0.0).backward()  # type: ignore[no-untyped-call]
            if counts:
                sums.add(output)
        self._bias.count(sums.experts)
        return sums

    def _computed(self, work: Callable[[], LossOutput]) -> LossOutput:
        def parts() -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor], ExpertCounts | None, Tensor | None]:
            output = work()
            return output.loss, dict(output.sums), dict(output.maxima), output.experts, output.balance_L2

        loss, sums, maxima, experts, balance_L2 = inside(self.policy.model, parts)
        return LossOutput(loss=loss, sums=sums, maxima=maxima, experts=experts, balance_L2=balance_L2)

    def step(self, step: int) -> StepStats:
        """See ``Trainer.step``."""
        hold_still(self._trainable, self.policy.model, self.spec.options, step)
        stats = self._optimizer.step(step)  # skipped on all ranks or on none: the norm is of all gradients
        self._bias.step(skipped=stats.skipped)
        return stats

    @torch.no_grad()
    def logprobs(
        self, share: Share, temperature: float, of: str, *, replay: bool = False
    ) -> list[npt.NDArray[np.float32]]:
        """See ``Trainer.logprobs``."""
        model = self.policy.model
        if of == "reference" and self.spec.reference and self.spec.options.lora is not None:
            with adapter_off(model):
                return self._logprobs(model, share, temperature)
        if of == "reference":
            assert self._reference is not None, "the trainer was made without a reference"
            return self._logprobs(self._reference, share, temperature)
        return self._logprobs(model, share, temperature, replay=replay)

    def renew_reference(self) -> None:
        """See ``Trainer.renew_reference``: every rank its shards."""
        assert self._reference is not None, "the trainer was made without a reference of its own"
        take_weights(self._reference, self.policy.model)
        self._renewed = True

    @torch.no_grad()
    def routed_logprobs(self, share: Share, temperature: float) -> list[Routed]:
        """See ``Trainer.routed_logprobs``."""
        model, found = self.policy.model, {}
        check_routing(model, "routing replay")
        for batch, counts in self._batches(share):
            routed = RoutedPass()
            logprobs_BT = inside(model, partial(loss_logprobs, model, batch, temperature, routed)).cpu().numpy()
            if counts:
                found.update(routed_rows(logprobs_BT, routed, batch, share.samples))
        return [found[place] for place in range(len(share.samples))]

    def _logprobs(
        self, model: PreTrainedModel, share: Share, temperature: float, *, replay: bool = False
    ) -> list[npt.NDArray[np.float32]]:
        samples = share.samples
        found: list[npt.NDArray[np.float32]] = [np.zeros(0, dtype=np.float32)] * len(samples)
        for batch, counts in self._batches(share):
            routed = routed_pass(model, batch, replay=True) if replay else None
            logprobs_BT = inside(model, partial(loss_logprobs, model, batch, temperature, routed)).cpu().numpy()
            for row, place in enumerate(batch.places if counts else ()):
                found[place] = of_tokens(logprobs_BT[row], samples[place], whole=batch.packing is None)
        return found

    def _batches(self, share: Share, *, packed: bool = True) -> Iterator[tuple[Batch, bool]]:
        """This rank's micro-batches, then repetitions (False) until every rank has made as many passes."""
        options, pad = self.spec.options, self.policy.pad_id
        packed = packed and takes_packed(self.policy.model)
        cut = partial(
            make_batches, max_tokens=options.micro_batch_tokens, pad_id=pad, device=self.device, packed=packed
        )
        own = cut(share.samples) if share.samples else []
        most = torch.tensor(len(own), device=self.device)
        dist.all_reduce(most, op=dist.ReduceOp.MAX)
        yield from ((batch, True) for batch in own)
        if len(own) < int(most):
            (filler,) = cut([share.filler])
            yield from ((filler, False) for _ in range(int(most) - len(own)))

    def teach(self, heads: Sequence[OutputHead]) -> None:
        """See ``Trainer.teach``."""
        self._models = replace(self._models, heads=tuple(one.on(self.device) for one in heads))

    def weights(self) -> ModelWeights:
        """See ``Trainer.weights``: each tensor gathered on all ranks, on the device; of an adapter merged."""
        model, options = self.policy.model, self.spec.options
        return ModelWeights(model, options.compute_dtype, self._whole, sent_wide(model, options))

    def _whole(self, tensor: Tensor) -> Tensor:
        return whole(tensor.to(self.device))

    @torch.no_grad()
    def expectations(self, prompts: Sequence[tuple[int, ...]]) -> tuple[Tensor, ...]:
        """See ``Trainer.expectations``; equal on all ranks."""
        model = self.policy.model
        model.eval()
        return tuple(inside(model, partial(next_logprobs, model, prompt)).cpu() for prompt in prompts)

    def save_state(self, folder: Path) -> None:
        """See ``Trainer.save_state``: every rank writes its shards into the same folder."""
        options = self.spec.options
        note = StateNote(
            ranks=dist.get_world_size(),
            skipped_in_a_row=self._optimizer.skipped_in_a_row,
            dtype=options.written,
            computed=str(options.compute_dtype).removeprefix("torch."),
            base=self.spec.model.source.path,
            lora=options.lora,
        )
        reference = self._reference if self._renewed else None
        save_state(folder, self.policy, self._trainable, self._optimizer, note, reference)

    def load_state(self, folder: Path) -> None:
        """See ``Trainer.load_state``: of any number of ranks, or of a trainer without."""
        self._renewed = load_state(folder, self.policy.model, self._trainable, self._optimizer, self._reference)

    def save(self, folder: Path) -> None:
        """See ``Trainer.save``: rank 0 writes, one tensor at a time."""
        dtype = self.spec.options.checkpoint_dtype or self.spec.options.compute_dtype
        self.policy.model.config.dtype = dtype
        model = self.policy.model
        tensors = ((name, one.cpu()) for name, one in merged_weights(model, dtype, self._whole))
        first = dist.get_rank() == 0
        if first:
            write_folder(self.policy, tensors, folder)
        else:
            for _ in tensors:
                pass
        if self.spec.options.lora is not None:
            save_adapter(model, folder / ADAPTER_FOLDER, self._whole, base=self.spec.model.source.path, write=first)
        dist.barrier()
