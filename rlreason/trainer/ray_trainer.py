"""A trainer of N ranks, each a Ray actor with its share of the model (``trainer.rank``); the same face as one process.

The process of the run holds no model: it cuts a step's samples into shares, and asks all ranks at once.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from rlreason.cluster.actor import check_gpus
from rlreason.cluster.actors import ActorGroup, ActorOptions
from rlreason.cluster.places import Reservation
from rlreason.cores import usable_cores
from rlreason.delivery.adapter import AdaptedWeights
from rlreason.objective.distillation.teacher import OutputHead
from rlreason.policy.lora import plain_shapes
from rlreason.trainer.counts import Counts
from rlreason.trainer.options import sent_wide
from rlreason.trainer.protocol import Loss, LossSums, Routed, StepStats, give_back
from rlreason.trainer.rank import RankSpec, RankTrainer, Share
from rlreason.trainer.rank_weights import RankWeights
from rlreason.trainer.shares import shares
from rlreason.trainer.states import check_seen, check_whole
from rlreason.trainer.weight_sender import WeightSender
from rlreason.types import TrainingSample

#: A rank that hears nothing of the others for so long gives up.
GROUP_TIMEOUT = timedelta(minutes=30)


class Rank(WeightSender):
    """The actor: a process group, and in it one ``RankTrainer``, whose weights it sends."""

    def __init__(self, rank: int, ranks: int, threads: int) -> None:
        super().__init__(first=rank == 0)
        self._rank, self._ranks = rank, ranks
        self._trainer: RankTrainer | None = None
        torch.set_num_threads(threads)

    def address(self) -> tuple[str, int]:
        """Where rank 0 will be found by the others."""
        import ray

        with socket.socket() as free:
            free.bind(("", 0))
            return ray.util.get_node_ip_address(), int(free.getsockname()[1])

    def join(self, address: tuple[str, int]) -> None:
        """Meet the other ranks at rank 0's address. Raises UsageError where torch does not see this one's GPU."""
        check_gpus()
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
            init_method=f"tcp://{address[0]}:{address[1]}",
            rank=self._rank,
            world_size=self._ranks,
            timeout=GROUP_TIMEOUT,
        )

    def open(self, spec: RankSpec) -> tuple[tuple[int, int], float]:
        """Load the model; ((all parameters, active ones), ``Trainer.rounded``)."""
        self._trainer = RankTrainer(spec, torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu"))
        return self._trainer.parameter_counts, self._trainer.rounded

    def release(self) -> None:
        """Give the model's memory back."""
        self._trainer = None
        self.forget_weights()
        give_back()

    def rest(self) -> None:
        """See ``Trainer.rest``."""
        give_back()

    @property
    def _opened(self) -> RankTrainer:
        assert self._trainer is not None
        return self._trainer

    def weights(self) -> AdaptedWeights:
        """See ``RankTrainer``."""
        return self._opened.weights()

    def shapes(self) -> Iterator[tuple[str, Tensor]]:
        """See ``WeightSender``."""
        model, options = self._opened.policy.model, self._opened.spec.options
        return plain_shapes(model, options.compute_dtype, sent_wide(model, options))

    def forward_backward(self, share: Share, loss: Loss) -> LossSums:
        """See ``RankTrainer``; tensors come back on the CPU."""
        return _on_cpu(self._opened.forward_backward(share, loss))

    def step(self, step: int) -> StepStats:
        """See ``RankTrainer``."""
        self.weights_change()
        return self._opened.step(step)

    def logprobs(self, share: Share, temperature: float, of: str, replay: bool) -> list[npt.NDArray[np.float32]]:
        """See ``RankTrainer``."""
        return self._opened.logprobs(share, temperature, of, replay=replay)

    def renew_reference(self) -> None:
        """See ``RankTrainer``."""
        self._opened.renew_reference()

    def routed_logprobs(self, share: Share, temperature: float) -> list[Routed]:
        """See ``RankTrainer``."""
        return self._opened.routed_logprobs(share, temperature)

    def expectations(self, prompts: Sequence[tuple[int, ...]]) -> tuple[Tensor, ...] | None:
        """See ``RankTrainer``; of rank 0."""
        found = self._opened.expectations(prompts)
        return found if self._rank == 0 else None

    def teach(self, heads: Sequence[OutputHead]) -> None:
        """See ``RankTrainer``."""
        self._opened.teach(heads)

    def save_state(self, folder: Path) -> None:
        """See ``RankTrainer``."""
        self._opened.save_state(folder)

    def load_state(self, folder: Path) -> None:
        """See ``RankTrainer``."""
        self.weights_change()
        self._opened.load_state(folder)

    def save(self, folder: Path) -> None:
        """See ``RankTrainer``."""
        self._opened.save(folder)


def _on_cpu(sums: LossSums) -> LossSums:
    """One number a metric: what travels."""

    def added(values: list[Tensor]) -> list[Tensor]:
        return [torch.stack(values).sum().cpu()]

    return LossSums(
        losses=added(sums.losses) if sums.losses else [],
        sums={key: added(values) for key, values in sums.sums.items()},
        maxima={key: [torch.stack(values).max().cpu()] for key, values in sums.maxima.items()},
        experts=None if sums.experts is None else sums.experts.cpu(),
        balance_L2=None if sums.balance_L2 is None else sums.balance_L2.cpu(),
    )


def start_ranks(count: int, options: ActorOptions, places: Reservation | None = None) -> ActorGroup:
    """``count`` ranks that have met, without a model: for one ``RayTrainer`` after the other. ``places``: of a plan.

    Raises UsageError where Ray is absent or has too little.
    """
    ranks = ActorGroup(Rank, count, options, max(1, usable_cores() // count), places=places)
    ranks.ask("join", ranks.ask_one(0, "address"))
    return ranks


class RayTrainer:
    """``Trainer`` on the ranks that ``start_ranks`` gave, which stay when it is closed.

    A failure of one rank ends all: the run goes on from its newest state.
    """

    def __init__(self, spec: RankSpec, ranks: ActorGroup) -> None:
        """Raises UsageError for a model that can't be loaded or sharded."""
        self._shape = spec.model.source.inspect()
        self._dtype = spec.model.dtype
        self._options = spec.options
        self._count = ranks.count
        self._ranks = ranks
        self._counts = Counts()
        opened: tuple[tuple[int, int], float] = ranks.ask("open", spec)[0]
        self._parameters, self._rounded = opened

    @property
    def architecture(self) -> Mapping[str, object]:
        """See ``Trainer.architecture``."""
        return self._shape.architecture

    @property
    def dtype(self) -> str:
        """See ``Trainer.dtype``."""
        return str(self._dtype).removeprefix("torch.")

    @property
    def router_dtype(self) -> str:
        """See ``Trainer.router_dtype``."""
        return self._options.router_dtype

    @property
    def vocabulary(self) -> int:
        """See ``Trainer.vocabulary``."""
        return self._shape.vocabulary

    @property
    def tokenizer(self) -> Any:
        """See ``Trainer.tokenizer``."""
        return self._shape.tokenizer

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """See ``Trainer.stop_ids``."""
        return self._shape.stop_ids

    @property
    def parameters(self) -> tuple[int, int]:
        """See ``Trainer.parameters``."""
        return self._parameters

    @property
    def counts(self) -> Counts:
        """See ``Trainer.counts``."""
        return self._counts

    @property
    def rounded(self) -> float:
        """See ``Trainer.rounded``."""
        return self._rounded

    def forward_backward(self, samples: Sequence[TrainingSample], loss: Loss) -> LossSums:
        """See ``Trainer.forward_backward``."""
        sums = LossSums()
        self._counts.trained.add(samples)
        if samples:
            found = self._ranks.ask("forward_backward", loss, each=self._shares(samples)[0])
            for one in found[:: self._options.tensor_parallel]:
                sums.merge(one)
        return sums

    def _shares(self, samples: Sequence[TrainingSample]) -> tuple[list[Share], list[list[int]]]:
        """What each rank is given, and the places of its samples; neighbours that compute together have the same."""
        together = self._options.tensor_parallel
        places = [own for own in shares(samples, self._count // together) for _ in range(together)]
        filler = min(samples, key=lambda one: len(one.token_ids))
        return [Share(samples=[samples[at] for at in own], filler=filler) for own in places], places

    def step(self, step: int) -> StepStats:
        """See ``Trainer.step``."""
        found: StepStats = self._ranks.ask("step", step)[0]
        return found

    def logprobs(
        self,
        samples: Sequence[TrainingSample],
        temperature: float = 1.0,
        of: Literal["policy", "reference"] = "policy",
        *,
        replay: bool = False,
    ) -> list[npt.NDArray[np.float32]]:
        """See ``Trainer.logprobs``."""
        self._counts.scored.add(samples)
        found: list[npt.NDArray[np.float32]] = [np.zeros(0, dtype=np.float32)] * len(samples)
        if samples:
            given, places = self._shares(samples)
            answered = self._ranks.ask("logprobs", temperature, of, replay, each=given)
            for own, answers in zip(places, answered, strict=True):
                for at, answer in zip(own, answers, strict=True):
                    found[at] = answer
        return found

    def renew_reference(self) -> None:
        """See ``Trainer.renew_reference``."""
        self._ranks.ask("renew_reference")

    def routed_logprobs(self, samples: Sequence[TrainingSample], temperature: float = 1.0) -> list[Routed]:
        """See ``Trainer.routed_logprobs``."""
        self._counts.scored.add(samples)
        found: dict[int, Routed] = {}
        if samples:
            given, places = self._shares(samples)
            for own, answers in zip(places, self._ranks.ask("routed_logprobs", temperature, each=given), strict=True):
                found.update(zip(own, answers, strict=True))
        return [found[at] for at in range(len(samples))]

    def teach(self, heads: Sequence[OutputHead]) -> None:
        """See ``Trainer.teach``."""
        self._ranks.ask("teach", heads)

    def weights(self) -> RankWeights:
        """See ``Trainer.weights``."""
        return RankWeights(self._ranks, self._shape, self._dtype)

    def expectations(self, prompts: Sequence[tuple[int, ...]]) -> tuple[Tensor, ...]:
        """See ``Trainer.expectations``."""
        found: tuple[Tensor, ...] = self._ranks.ask("expectations", prompts)[0]
        return found

    def save_state(self, folder: Path) -> None:
        """See ``Trainer.save_state``; on a file system that all ranks see."""
        self._ranks.ask("save_state", folder.absolute())
        check_whole(folder)

    def load_state(self, folder: Path) -> None:
        """See ``Trainer.load_state``."""
        self._ranks.ask("load_state", folder.absolute())

    def save(self, folder: Path) -> None:
        """See ``Trainer.save``."""
        self._ranks.ask("save", folder.absolute())
        weights = sorted(folder.glob("*.safetensors")) or [folder / "model.safetensors"]
        check_seen([folder / "config.json", *weights])

    def rest(self) -> None:
        """See ``Trainer.rest``."""
        self._ranks.ask("rest")

    def close(self) -> None:
        """See ``Trainer.close``."""
        if not self._ranks.closed:
            self._ranks.ask("release")
