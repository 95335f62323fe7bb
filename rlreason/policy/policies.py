"""A policy is a model with its tokenizer: made from nothing, loaded, copied, saved."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlreason.errors import UsageError
from rlreason.policy.model import build_model, load_model, load_tokenizer, save_model
from rlreason.policy.tokenizer import bpe_tokenizer, character_tokenizer

if TYPE_CHECKING:
    from rlreason.config import PolicyConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A model and the tokenizer it was trained with."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    def copy_model(self) -> PreTrainedModel:
        """An independent copy of the weights, without gradients: for a sampler, a reference or a teacher."""
        twin = copy.deepcopy(self.model)
        twin.requires_grad_(requires_grad=False)
        return twin.eval()

    def save(self, folder: Path) -> None:
        """Write a plain Hugging Face folder."""
        save_model(self.model, self.tokenizer, folder)


def load_policy(path: str | Path, dtype: str, device: torch.device) -> Policy:
    """A policy from a Hugging Face folder or hub id. Raises UsageError naming the path."""
    return Policy(model=load_model(path, dtype, device), tokenizer=load_tokenizer(path))


def fresh_policy(
    config: PolicyConfig, alphabet: str | None, texts: Iterable[str], seed: int, device: torch.device
) -> Policy:
    """A policy with random weights and a tokenizer made from the data: the same data, the same tokenizer.

    Raises UsageError where a character tokenizer is asked for and the data has no fixed alphabet.
    """
    if config.tokenizer.kind == "bpe":
        tokenizer = bpe_tokenizer(texts, config.tokenizer.vocab_size)
    elif alphabet is not None:
        tokenizer = character_tokenizer(alphabet)
    else:
        raise UsageError(
            'policy.tokenizer.kind = "characters" needs a procedural task with a fixed alphabet; '
            'use kind = "bpe" for data from files'
        )
    return Policy(model=build_model(config, tokenizer, seed, device), tokenizer=tokenizer)
