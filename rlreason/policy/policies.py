"""A policy is a model with its tokenizer: made from nothing, loaded, copied, saved."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlreason.data.prompts import stop_token_ids
from rlreason.errors import UsageError
from rlreason.policy.loading import check_shape, inspect_model, load_model, load_tokenizer
from rlreason.policy.logprobs import next_logprobs
from rlreason.policy.model import build_model, generation_eos_ids, meta_model
from rlreason.policy.saving import save_model
from rlreason.policy.support import longest_sequence
from rlreason.policy.tokenizer import bpe_tokenizer, character_tokenizer
from rlreason.wide_routers import wide_names

if TYPE_CHECKING:
    from rlreason.config import PolicyConfig

#: Keys of a config that say where a model comes from, and nothing of its shape.
ORIGIN = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache")


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A model and the tokenizer it was trained with."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @property
    def architecture(self) -> Mapping[str, object]:
        """The model's config as a dict, with ``architectures``, ``model_type`` and, whatever the config calls it,
        ``max_position_embeddings`` where it has a limit; nothing of where it came from."""
        config = {key: value for key, value in self.model.config.to_dict().items() if key not in ORIGIN}
        longest = longest_sequence(self.model.config)
        config |= {} if longest is None else {"max_position_embeddings": longest}
        return config | {"architectures": [type(self.model).__name__], "model_type": self.model.config.model_type}

    @property
    def dtype(self) -> str:
        """What the model computes in, such as "bfloat16"."""
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def router_dtype(self) -> str:
        """What its routers compute in, where that is said: otherwise ``dtype``."""
        return "float32" if wide_names(self.model) else self.dtype

    @property
    def vocabulary(self) -> int:
        """Rows of the head, which may be more than the tokenizer has words."""
        return int(self.model.get_output_embeddings().weight.shape[0])

    @property
    def pad_id(self) -> int:
        """What short rows are filled with, which is never looked at: the tokenizer's pad token, else its eos."""
        tokenizer = self.tokenizer
        found = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        return 0 if found is None else int(found)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end a sample: the end of turn, then every eos of the tokenizer and the generation config."""
        return stop_token_ids(self.tokenizer, generation_eos_ids(self.model))

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor by transformers' names, in the model's dtype; tied ones come under each of their names."""
        yield from self.model.state_dict().items()

    def expectations(self, prompts: Sequence[tuple[int, ...]]) -> tuple[Tensor, ...]:
        """log π of the token after each prompt at temperature 1, [V] float32, on the CPU."""
        training = self.model.training
        self.model.eval()
        found = tuple(next_logprobs(self.model, prompt).cpu() for prompt in prompts)
        self.model.train(training)
        return found

    def frozen_copy(self) -> PreTrainedModel:
        """An independent copy of the weights, without gradients: for a reference."""
        twin = copy.deepcopy(self.model)
        twin.requires_grad_(requires_grad=False)
        return twin.eval()

    def freeze(self) -> PreTrainedModel:
        """The model itself, in evaluation mode and without gradients from here on: for a teacher."""
        self.model.requires_grad_(requires_grad=False)
        return self.model.eval()

    def save(self, folder: Path) -> None:
        """Write a plain Hugging Face folder."""
        save_model(self.model, self.tokenizer, folder)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySource:
    """Where a policy comes from, as plain data that travels to other processes.

    Example: ``PolicySource(path="runs/x/stages/01-sft/checkpoint")``, or a config with the tokenizer made for it.
    """

    #: A folder or hub id; None: random weights.
    path: str | None = None
    config: PolicyConfig | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    seed: int = 0

    def load(self, dtype: torch.dtype, device: torch.device) -> Policy:
        """The policy with its parameters in ``dtype``. Raises UsageError as ``load_policy`` and ``fresh_policy`` do."""
        if self.path is not None:
            policy = load_policy(self.path, dtype, device)
            if self.config is not None:
                check_shape(policy.model.config, self.config, self.path)
            return policy
        assert self.config is not None
        assert self.tokenizer is not None
        model = build_model(self.config, self.tokenizer, self.seed, device, dtype)
        return Policy(model=model, tokenizer=self.tokenizer)

    def inspect(self) -> Policy:
        """The policy on the meta device: shapes without numbers."""
        if self.path is not None:
            return Policy(model=inspect_model(self.path), tokenizer=load_tokenizer(self.path))
        assert self.config is not None
        assert self.tokenizer is not None
        return Policy(model=meta_model(self.config, self.tokenizer), tokenizer=self.tokenizer)


def load_policy(path: str | Path, dtype: torch.dtype, device: torch.device) -> Policy:
    """A policy from a Hugging Face folder or hub id, its parameters in ``dtype``. Raises UsageError naming the path."""
    return Policy(model=load_model(path, dtype, device), tokenizer=load_tokenizer(path))


def fresh_policy(
    config: PolicyConfig,
    alphabet: str | None,
    texts: Iterable[str],
    seed: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Policy:
    """A policy with random weights in ``dtype`` and a tokenizer made from the data.

    Raises UsageError as ``fresh_tokenizer`` does.
    """
    return PolicySource(config=config, tokenizer=fresh_tokenizer(config, alphabet, texts), seed=seed).load(
        dtype, device
    )


def fresh_tokenizer(config: PolicyConfig, alphabet: str | None, texts: Iterable[str]) -> PreTrainedTokenizerBase:
    """The tokenizer of a model built from nothing: the same data, the same tokenizer.

    Raises UsageError where a character tokenizer is asked for and the data has no fixed alphabet.
    """
    if config.tokenizer.kind == "bpe":
        return bpe_tokenizer(texts, config.tokenizer.vocab_size)
    if alphabet is None:
        raise UsageError(
            'tokenizer.kind = "characters" needs a procedural task with a fixed alphabet; use kind = "bpe" for data '
            "from files"
        )
    return character_tokenizer(alphabet)
