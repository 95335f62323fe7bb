"""A teacher behind vLLM beside the same one in transformers: ``python vllm_scores.py`` prints what differs as JSON.

A program of its own, as vLLM sets threads and takes memory for the whole process.
"""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import torch

from rlreason.config import PolicyConfig
from rlreason.errors import UsageError
from rlreason.policy.policies import PolicySource, fresh_tokenizer
from rlreason.sampler.vllm_teacher import VllmTeacher, VllmTeacherSpec
from rlreason.trainer.options import ModelSource
from rlreason.trainer.teachers import TeacherScorer, TeacherSpec
from rlreason.types import TrainingSample

SHAPE = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32,
    "intermediate_size": 96, "max_position_embeddings": 256, "initializer_range": 0.6, "tie_word_embeddings": True,
}  # fmt: skip
#: Of the first 12 words: the student has no more.
SHARED, K = 12, 4


def rows(words: int, count: int = 5) -> list[TrainingSample]:
    random = np.random.default_rng(0)
    found = []
    for place in range(count):
        length = 12 + 9 * place
        mask = np.arange(length) >= 4
        ids = random.integers(0, words, length)
        found.append(TrainingSample(token_ids=ids, loss_mask=mask, sampler_logprobs=-2.0 * mask, weights=mask / 100))
    return found


def apart(ours: list[TrainingSample], theirs: list[TrainingSample]) -> dict[str, float]:
    """Largest differences on loss tokens: log q of the token, of the words, of the rest where that is above 1e-4."""
    found = {"drawn": 0.0, "words": 0.0, "ids": 0.0, "rest": 0.0}
    for one, other in zip(ours, theirs, strict=True):
        mask = one.loss_mask
        found["drawn"] = max(found["drawn"], float(np.abs(one.teacher_logprobs - other.teacher_logprobs)[mask].max()))
        a, b = one.teacher, other.teacher
        if a is None:
            continue
        found["ids"] += float((a.ids != b.ids)[mask].sum())
        found["words"] = max(found["words"], float(np.abs(a.logprobs - b.logprobs)[mask].max()))
        both = mask & (b.log_tail > np.log(1e-4))
        found["rest"] = max(found["rest"], float(np.abs(np.expm1(a.log_tail - b.log_tail))[both].max(initial=0.0)))
    return found


def main() -> None:
    config = PolicyConfig(model_type="qwen3", model=SHAPE)
    source = PolicySource(config=config, tokenizer=fresh_tokenizer(config, "0123456789", ()), seed=3)
    model, cpu = ModelSource(source=source, dtype=torch.float32), torch.device("cpu")

    def asked(payload: str, k: int, shared: int = SHARED) -> TeacherScorer:
        return TeacherScorer(TeacherSpec(model=model, payload=payload, k=k, shared=shared, micro_batch_tokens=64), cpu)

    spec = VllmTeacherSpec(source=source, dtype=torch.float32, payload="topk", k=K, shared=SHARED)
    engine = VllmTeacher(replace(spec, kv_cache_bytes=64 << 20))
    samples, found = rows(SHARED), {}
    ours = engine.score(samples)
    found["tail"] = apart(ours, asked("topk", K).score(samples))
    found["not cut"] = apart(ours, asked("topk", K, 1000).score(samples))
    found["alone"] = apart([engine.score([one])[0] for one in samples], ours)
    own = asked("topk", K).greedy([3, 4, 5, 6], 12)
    found["greedy"] = {"differ": sum(a != b for a, b in zip(engine.greedy([3, 4, 5, 6], 12), own, strict=True))}
    strange = rows(SHARED, 1)[0]
    strange.token_ids[7] = SHARED
    (cut,) = engine.score([strange])
    found["strange"] = {"from": int(np.flatnonzero(np.isnan(cut.teacher_logprobs))[0])}
    try:
        engine.score([TrainingSample(token_ids=[3] * 256, loss_mask=[1] * 256, sampler_logprobs=-1.0)])
    except UsageError as error:
        found["long"] = str(error)
    # The same engine, asked for every word, and for none.
    engine._count = SHARED
    everything = engine.score(samples)
    found["all"] = apart(everything, asked("topk", 1000).score(samples))
    found["whole"] = {"rest": float(max(one.teacher.log_tail[one.loss_mask].max() for one in everything))}
    engine._count = 0
    found["drawn"] = apart(engine.score(samples), asked("sampled", K).score(samples))
    engine.close()
    print(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
