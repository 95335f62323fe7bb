"""A reward model: ``rm:FOLDER``, a saved transformers model for sequence classification with one output.

torch and transformers are imported here alone, and only in the worker process that runs the model.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from rlreason.rewards.plugins.adapted import Adapted, messages_of, reply_of
from rlreason.types import Completion, Problem


def adapt(folder: str) -> Adapted:
    """The model saved in ``folder``. Raises ValueError where there is none."""
    if not (Path(folder) / "config.json").is_file():
        raise ValueError(f"rm:{folder}: no config.json there; give the folder of a saved sequence-classification model")

    def call(
        problems: Sequence[Problem],
        completions: Sequence[Completion],
        *,
        batch_size: int = 8,
        max_length: int = 0,
        device: str = "",
        dtype: str = "float32",
    ) -> list[float]:
        """The output of a sequence-classification model for prompt and response, in batches of ``batch_size``.

        A chat prompt is written by the model's chat template, a text prompt stands before its response, as in TRL.
        Longer texts lose their beginning at ``max_length`` tokens (0: the model's own limit). ``device``: "" takes a
        GPU where there is one.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        scorer = _loaded(folder, device, dtype)
        texts = [_text(scorer.tokenizer, *pair) for pair in zip(problems, completions, strict=True)]
        return [
            score for i in range(0, len(texts), batch_size) for score in scorer(texts[i : i + batch_size], max_length)
        ]

    keys = frozenset({"batch_size", "max_length", "device", "dtype"})
    # The seconds hold the time to load it; address space says nothing of what torch uses.
    return Adapted(function=call, per="step", options=keys, seconds=360.0, memory_mb=0, doc=call.__doc__ or "")


def _text(tokenizer: Any, problem: Problem, completion: Completion) -> str:
    if not problem.messages:
        return problem.prompt + completion.response
    turns = messages_of(problem) + reply_of(completion)
    return str(tokenizer.apply_chat_template(turns, tokenize=False))


@lru_cache(maxsize=2)
def _loaded(folder: str, device: str, dtype: str) -> _Scorer:
    return _Scorer(folder, device, dtype)


class _Scorer:
    """A model with its tokenizer. Raises ValueError for one with more than one output."""

    def __init__(self, folder: str, device: str, dtype: str) -> None:
        torch, transformers = importlib.import_module("torch"), importlib.import_module("transformers")
        self._torch: Any = torch
        self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
        wanted = getattr(torch, dtype)
        model: Any = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=wanted)
        if model.config.num_labels != 1:
            raise ValueError(f"rm:{folder}: the model has {model.config.num_labels} outputs; a reward model has one")
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        model.config.get_text_config().pad_token_id = self.tokenizer.pad_token_id
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._model = model.to(self._device).eval()
        self._longest = int(getattr(model.config.get_text_config(), "max_position_embeddings", 0) or 0)

    def __call__(self, texts: list[str], max_length: int) -> list[float]:
        self.tokenizer.padding_side, self.tokenizer.truncation_side = "right", "left"
        longest = max_length or self._longest
        cut = {"truncation": True, "max_length": longest} if longest else {}
        batch = self.tokenizer(text=texts, return_tensors="pt", padding=True, add_special_tokens=False, **cut)
        batch.pop("token_type_ids", None)
        with self._torch.inference_mode():
            logits = self._model(**batch.to(self._device)).logits
        return [float(value) for value in logits[:, 0].float()]
