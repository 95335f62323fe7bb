"""Nouns that cross rooms hold their tokens in arrays, whatever they are made of."""

from __future__ import annotations

import pickle

import numpy as np

from rlreason.types import Completion

TOKENS = 8192


def test_a_token_of_a_completion_takes_13_bytes() -> None:
    """review/repro_systems/costs.py: 76 bytes as tuples. An id, a log-probability and a version of 4, a mask of 1."""
    completion = Completion(
        prompt_ids=(1, 2, 3),
        token_ids=tuple(range(TOKENS)),
        sampler_logprobs=tuple(-0.5 for _ in range(TOKENS)),
        policy_versions=tuple(range(TOKENS)),
        text="",
        finish_reason="stop",
    )
    held = (completion.token_ids, completion.sampler_logprobs, completion.policy_versions, completion.loss_mask)
    assert [array.dtype for array in held if array is not None] == [np.int32, np.float32, np.int32, np.bool_]
    assert sum(array.nbytes for array in held if array is not None) == 13 * TOKENS
    assert len(pickle.dumps(completion, 5)) < 13 * TOKENS + 2000  # on its way to another process
    assert pickle.loads(pickle.dumps(completion, 5)).token_ids.tolist() == list(range(TOKENS))
