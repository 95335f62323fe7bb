"""One optimizer step of a trainer in a process of its own: what its memory rises to, beside what `plan` says.

    python tests/sizing/measure_step.py '{"family": "qwen3", "model": {...}, "rows": 4, ...}'

Prints JSON: the most bytes that torch's memory profiler saw allocated at a time, and the budget by part.
"""

from __future__ import annotations

import json
import sys
from itertools import accumulate

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from rlreason.config import OptimizerConfig, PolicyConfig
from rlreason.policy.batch import supervised_sample
from rlreason.policy.model import fresh_config
from rlreason.policy.policies import PolicySource, fresh_tokenizer
from rlreason.sizing.activations import MicroBatch, count_activations
from rlreason.sizing.memory import Training, training_memory
from rlreason.sizing.shape import empty_model, shape_of
from rlreason.trainer.forward import CrossEntropyLoss
from rlreason.trainer.local import LocalTrainer
from rlreason.trainer.options import TrainerOptions


def main() -> None:
    asked = json.loads(sys.argv[1])
    batch = MicroBatch(**asked["batch"])
    dtype = getattr(torch, asked["dtype"])
    torch.set_num_threads(2)
    policy = PolicyConfig(model_type=asked["family"], model=asked["model"])
    tokenizer = fresh_tokenizer(policy, "0123456789", ())
    source = PolicySource(config=policy, tokenizer=tokenizer)

    def samples(rows: int, completion: int) -> list:  # type: ignore[type-arg]
        found = []
        for row in range(rows):
            ids = np.full(batch.prompt + completion, 8)
            ids[0] = 7 + row // batch.group
            found.append(supervised_sample(ids, np.arange(len(ids)) >= batch.prompt))  # type: ignore[arg-type]
        return found

    options = TrainerOptions(
        optimizer=OptimizerConfig(lr=1e-3), total_steps=10, micro_batch_tokens=batch.tokens,
        activation_checkpointing=asked["checkpointing"], compute_dtype=dtype,
    )  # fmt: skip
    loss = CrossEntropyLoss(denominator=1.0)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        trainer = LocalTrainer(source.load(torch.float32, torch.device("cpu")), options)
        trainer.forward_backward(samples(1, 2), loss)
        trainer.step(0)  # makes the moments
        for _ in range(2):  # of the second one the gradients of the first are there
            trainer.forward_backward(samples(batch.rows, batch.completion), loss)
        trainer.step(1)
    events = [one for one in profiled.profiler.kineto_results.events() if one.name() == "[memory]"]
    peak = max(accumulate(one.nbytes() for one in sorted(events, key=lambda one: one.start_ns())))
    config = fresh_config(policy, tokenizer)
    shape = shape_of(empty_model(config))
    budget = training_memory(
        shape,
        Training(width=dtype.itemsize, on_gpu=False),
        batch,
        count_activations(config, batch, dtype, checkpointing=asked["checkpointing"]),
    )
    parts = {part.name: part.bytes for part in budget.parts}
    print(json.dumps({"peak": peak, "parts": parts}))


main()
