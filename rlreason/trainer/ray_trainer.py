"""A trainer of N ranks, each a Ray actor with its share of the model (``trainer.rank``); the same face as one process.

The process of the run holds no model: it cuts a step's samples into shares, and asks all ranks at once.
"""

from __future__ import annotations

import gc
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from rlreason.cluster.actors import ActorGroup, ActorOptions
from rlreason.cores import usable_cores
from rlreason.delivery.group import GroupOptions, Meeting, Sending
from rlreason.delivery.packing import Bytes, Manifest, Packer
from rlreason.delivery.parcel import LocalParcel
from rlreason.trainer.protocol import Loss, LossSums, StepStats
from rlreason.trainer.rank import RankSpec, RankTrainer, Share
from rlreason.trainer.rank_weights import RankWeights
from rlreason.trainer.shares import shares
from rlreason.types import TrainingSample

#: A rank that hears nothing of the others for so long gives up.
GROUP_TIMEOUT = timedelta(minutes=30)


@dataclass(slots=True)
class _Bucket:
    """Tensors of one bucket as bytes, which Ray hands over without copying."""

    tensors: list[tuple[str, str, tuple[int, ...], npt.NDArray[np.uint8]]] = field(default_factory=list)

    @staticmethod
    def of(tensors: Sequence[tuple[str, Tensor]]) -> _Bucket:
        return _Bucket(
            [
                (name, str(one.dtype), tuple(one.shape), one.contiguous().view(-1).view(torch.uint8).cpu().numpy())
                for name, one in tensors
            ]
        )

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, dtype, shape, data in self.tensors:
            bytes_ = torch.from_numpy(data.copy())  # Ray's memory is read-only
            yield name, bytes_.view(getattr(torch, dtype.removeprefix("torch."))).view(shape)


class Rank:
    """The actor: a process group, and in it one ``RankTrainer``."""

    def __init__(self, rank: int, ranks: int, threads: int) -> None:
        self._rank, self._ranks = rank, ranks
        self._trainer: RankTrainer | None = None
        self._weights: Iterator[tuple[str, Tensor]] | None = None
        #: Of rank 0: the newest version that was packed here, and who is being sent one.
        self._packer: Packer | None = None
        self._packed: LocalParcel | None = None
        self._whole: LocalParcel | None = None
        self._sendings: list[Sending] = []
        torch.set_num_threads(threads)

    def address(self) -> tuple[str, int]:
        """Where rank 0 will be found by the others."""
        import ray

        with socket.socket() as free:
            free.bind(("", 0))
            return ray.util.get_node_ip_address(), int(free.getsockname()[1])

    def join(self, address: tuple[str, int]) -> None:
        """Meet the other ranks at rank 0's address."""
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
        self._trainer = self._weights = self._packer = self._packed = self._whole = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @property
    def _opened(self) -> RankTrainer:
        assert self._trainer is not None
        return self._trainer

    def forward_backward(self, share: Share, loss: Loss) -> LossSums:
        """See ``RankTrainer``; tensors come back on the CPU."""
        return _on_cpu(self._opened.forward_backward(share, loss))

    def step(self, step: int) -> StepStats:
        """See ``RankTrainer``."""
        return self._opened.step(step)

    def logprobs(self, share: Share, temperature: float, of: str) -> list[npt.NDArray[np.float32]]:
        """See ``RankTrainer``."""
        return self._opened.logprobs(share, temperature, of)

    def expectations(self, prompts: Sequence[tuple[int, ...]]) -> tuple[Tensor, ...] | None:
        """See ``RankTrainer``; of rank 0."""
        found = self._opened.expectations(prompts)
        return found if self._rank == 0 else None

    def begin_weights(self) -> None:
        """The next ``bucket`` is the first."""
        self._weights = self._opened.weights()

    def bucket(self, count: int) -> _Bucket | None:
        """The next ``count`` tensors, of rank 0; the others gather along."""
        assert self._weights is not None
        found = []
        for _ in range(count):
            named = next(self._weights)
            if self._rank == 0:
                found.append(named)
        return _Bucket.of(found) if self._rank == 0 else None

    def pack(self, version: int, delta: bool) -> Manifest | None:
        """Pack the weights as ``version`` in rank 0's memory, one tensor after the other; the others gather along."""
        weights = self._opened.weights()
        if self._rank:
            for _ in weights:
                pass
            return None
        if self._packer is None or self._packer.delta != delta:
            self._packer = Packer(delta=delta)
        self._packed = self._whole = None  # two versions are never held
        self._packed = LocalParcel(self._packer.pack(weights, version), self._packer)
        return self._packed.manifest

    def send(self, version: int, whole: bool, members: int, options: GroupOptions) -> Meeting | None:
        """Rank 0 begins to send ``version``, while it goes on with what it does; see ``Parcel.send``."""
        parcel = self._parcel(version, whole)
        if parcel is None:
            return None
        import ray

        sending = Sending(parcel.buckets(), members, replace(options, host=ray.util.get_node_ip_address()))
        self._sendings = [one for one in self._sendings if one.under_way] + [sending]
        return sending.meeting

    def end_sending(self, meeting: Meeting) -> None:
        """See ``Departure.end``."""
        for one in self._sendings:
            if one.meeting == meeting:
                one.end()

    def whole(self, version: int) -> Manifest | None:
        """See ``Parcel.whole``; the bytes stay here."""
        parcel = self._parcel(version, True)
        return None if parcel is None else parcel.manifest

    def buckets(self, version: int, whole: bool) -> Sequence[Bytes] | None:
        """For the report of a delivery that failed."""
        parcel = self._parcel(version, whole)
        return None if parcel is None else parcel.buckets()

    def _parcel(self, version: int, whole: bool) -> LocalParcel | None:
        parcel = self._packed
        if parcel is None or parcel.manifest.version != version:
            return None
        if not whole or parcel.manifest.base is None:
            return parcel
        if self._whole is None or self._whole.manifest.version != version:
            self._whole = parcel.whole()
        return self._whole

    def save_state(self, folder: Path) -> None:
        """See ``RankTrainer``."""
        self._opened.save_state(folder)

    def load_state(self, folder: Path) -> None:
        """See ``RankTrainer``."""
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
    )


def start_ranks(count: int, options: ActorOptions) -> ActorGroup:
    """``count`` ranks that have met, without a model: for one ``RayTrainer`` after the other.

    Raises UsageError where Ray is absent or has too little.
    """
    ranks = ActorGroup(Rank, count, options, max(1, usable_cores() // count))
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
        self._ranks = ranks
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
    def rounded(self) -> float:
        """See ``Trainer.rounded``."""
        return self._rounded

    def forward_backward(self, samples: Sequence[TrainingSample], loss: Loss) -> LossSums:
        """See ``Trainer.forward_backward``."""
        sums = LossSums()
        if samples:
            for one in self._ranks.ask("forward_backward", loss, each=self._shares(samples)[0]):
                sums.merge(one)
        return sums

    def _shares(self, samples: Sequence[TrainingSample]) -> tuple[list[Share], list[list[int]]]:
        """What each rank is given, and the places of its samples."""
        places = shares(samples, self._ranks.count)
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
    ) -> list[npt.NDArray[np.float32]]:
        """See ``Trainer.logprobs``."""
        found: list[npt.NDArray[np.float32]] = [np.zeros(0, dtype=np.float32)] * len(samples)
        if samples:
            given, places = self._shares(samples)
            for own, answers in zip(places, self._ranks.ask("logprobs", temperature, of, each=given), strict=True):
                for at, answer in zip(own, answers, strict=True):
                    found[at] = answer
        return found

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

    def load_state(self, folder: Path) -> None:
        """See ``Trainer.load_state``."""
        self._ranks.ask("load_state", folder.absolute())

    def save(self, folder: Path) -> None:
        """See ``Trainer.save``."""
        self._ranks.ask("save", folder.absolute())

    def close(self) -> None:
        """See ``Trainer.close``."""
        if not self._ranks.closed:
            self._ranks.ask("release")
