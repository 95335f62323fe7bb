"""Everything of the rollout workers that only a GPU can show, in one command:

    python bench/gpu/rollouts.py --out bench/results/rollouts-h100.json

Needs Ray and vLLM's CUDA build. Each case is a short GRPO run in a process of its own, every delivery proved by the
canary: a worker that shares the trainer's GPU and sleeps while the policy learns, one that shares it by fractions and
runs a step ahead, one on a GPU of its own, and one engine over two GPUs, where there are as many. A case that fails
says why and the others go on. Drawing with transformers is the baseline. ``--smoke`` runs the same cases on CPUs with
the quickstart's model, to see that the script works; its times mean nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rlreason.run.manifest import describe_hardware, git_commit, installed_packages

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from quickstart import grpo_metrics, quickstart_recipe

#: Random weights: Qwen3-0.6B's layers, and a MoE of their width. The vocabulary is the task's.
LARGE: dict[str, tuple[str, dict[str, object]]] = {
    "Qwen3-0.6B's shape": (
        "qwen3",
        {"hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8,
         "head_dim": 128, "intermediate_size": 3072, "tie_word_embeddings": True, "initializer_range": 0.02},
    ),
    "MoE, 2 of 16 experts": (
        "qwen3_moe",
        {"hidden_size": 1024, "num_hidden_layers": 12, "num_attention_heads": 16, "num_key_value_heads": 8,
         "head_dim": 128, "intermediate_size": 3072, "moe_intermediate_size": 1536, "num_experts": 16,
         "num_experts_per_tok": 2, "norm_topk_prob": True, "tie_word_embeddings": True, "initializer_range": 0.02},
    ),
}  # fmt: skip
STEPS = 12
#: Steps at both ends that are not counted.
WARM = 3
#: Metrics whose median is reported.
KEPT = ("seconds", "seconds/sample", "seconds/train", "tokens_per_second", "delivery/seconds", "delivery/canary",
        "staleness/mean", "mismatch/mean", "mismatch/max", "workers/replaced")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Case:
    """One way to place trainer and workers. Example: ``Case(name="two workers", gpus=3, cluster={...})``."""

    name: str
    #: GPUs that it needs.
    gpus: int
    cluster: dict[str, object]
    sampler: dict[str, object]
    staleness: int = 0


RAY = {"kind": "ray", "rollout_workers": 1}
CASES = (
    Case(name="transformers, in the trainer's process", gpus=1, cluster={"kind": "inline"},
         sampler={"engine": "transformers"}),
    Case(name="vLLM sleeps while the policy learns", gpus=1, cluster={**RAY, "gpus_per_worker": 0.5, "colocate": True},
         sampler={"engine": "vllm", "gpu_memory_utilization": 0.5}),
    Case(name="vLLM on a fraction of the trainer's GPU, a step ahead", gpus=1, cluster={**RAY, "gpus_per_worker": 0.5},
         sampler={"engine": "vllm", "gpu_memory_utilization": 0.4}, staleness=1),
    Case(name="changes alone are delivered", gpus=1, cluster={**RAY, "gpus_per_worker": 0.5},
         sampler={"engine": "vllm", "gpu_memory_utilization": 0.4, "delivery": "delta"}),
    Case(name="vLLM on a GPU of its own, a step ahead", gpus=2, cluster={**RAY, "gpus_per_worker": 1.0},
         sampler={"engine": "vllm"}, staleness=1),
    Case(name="one engine over two GPUs, a step ahead", gpus=3, cluster={**RAY, "gpus_per_worker": 2.0},
         sampler={"engine": "vllm", "tensor_parallel": 2}, staleness=1),
)  # fmt: skip


def recipe_of(case: Case, model: str | None) -> dict[str, Any]:
    """The quickstart's first two stages, cut short, on ``case``'s workers. ``model`` None: the quickstart's own."""
    recipe = quickstart_recipe()
    sampler, cluster = dict(case.sampler), dict(case.cluster)
    if model is None:  # CPUs
        for name in ("gpus_per_worker", "colocate"):
            cluster.pop(name, None)
        for name in ("gpu_memory_utilization", "tensor_parallel"):
            sampler.pop(name, None)
    else:
        kind, shape = LARGE[model]
        recipe["policy"] = {"model_type": kind, "dtype": "bfloat16", "model": {**shape, "max_position_embeddings": 256}}
    cold_start, grpo = recipe["stage"]
    recipe["stage"] = [
        cold_start | {"steps": 20, "eval_every": 0, "optimizer": {"lr": 1e-3 if model is None else 1e-4}},
        grpo | {"steps": STEPS, "eval_every": 0, "staleness": case.staleness,
                "optimizer": {"lr": 1e-4 if model is None else 1e-6}},
    ]  # fmt: skip
    return recipe | {"sampler": sampler, "cluster": cluster}


def run(case: Case, model: str | None) -> dict[str, Any]:
    """Medians of the counted steps, or why the run failed."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            steps = grpo_metrics(recipe_of(case, model), Path(folder, "case"))[WARM:-WARM]
        except RuntimeError as error:
            return {"failed": str(error)}
    values = {name: [step[name] for step in steps if name in step] for name in KEPT}
    return {name: statistics.median(found) for name, found in values.items() if found}


def main() -> None:
    """Run the cases that fit this machine and write what they gave."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a .json file")
    parser.add_argument("--smoke", action="store_true", help="on CPUs, with the quickstart's model")
    options = parser.parse_args()
    gpus = torch.cuda.device_count()
    if not gpus and not options.smoke:
        raise SystemExit("no GPU here; --smoke runs the same cases on CPUs")
    results: list[dict[str, Any]] = []
    for model in [None] if options.smoke else list(LARGE):
        for case in CASES:
            fits = options.smoke or case.gpus <= gpus
            found = run(case, model) if fits else {"left_out": f"needs {case.gpus} GPUs, and there are {gpus}"}
            results.append({"model": model or "the quickstart's", "case": case.name, **found})
            print(json.dumps(results[-1]), flush=True)
    if options.out is not None:
        document = {
            "hardware": describe_hardware([]).model_dump(),
            "packages": installed_packages(),
            "commit": git_commit(Path(__file__).parent),
            "results": results,
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if any("failed" in one for one in results):
        raise SystemExit("a case failed: see above")


if __name__ == "__main__":
    main()
