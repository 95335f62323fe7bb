"""Writes parity_molt.json: what Molt's loss and advantages are of the inputs in parity.json, by its own functions.

    git clone https://github.com/NVIDIA-NeMo/labs-molt && git -C labs-molt checkout 2d62608
    CUDA_VISIBLE_DEVICES= python tests/objective/make_parity_molt.py labs-molt

``loss.py`` and ``advantage.py`` need torch alone, so they are loaded as files, not with their package. Molt computes in
float32. ``test_parity_molt.py`` holds our computations against it. Nothing here imports rlreason.
"""

import importlib.util
import json
import subprocess
import sys
import types
from pathlib import Path

import torch

HERE = Path(__file__).parent
INPUTS = json.loads((HERE / "parity.json").read_text(encoding="utf-8"))
GSPO = {"loss_mode": "gspo", "clip_eps_low": 0.05, "clip_eps_high": 0.08}
LOSSES = {
    "ppo": {},
    "ppo_sequence": {"loss_agg_mode": "seq-mean-token-mean"},
    "ppo_sum": {"loss_agg_mode": "seq-mean-token-sum"},
    "ppo_sum_norm": {"loss_agg_mode": "seq-mean-token-sum-norm"},
    "dual_clip": {"dual_clip": 3.0},
    "gspo": {**GSPO, "loss_agg_mode": "seq-mean-token-mean"},
    "gspo_token": GSPO,
    "cispo": {"loss_mode": "cispo", "clip_eps_high": 1.4},
    "token_trunc": {"is_correction_level": "token", "is_correction_mode": "trunc"},
    "token_mask": {"is_correction_level": "token", "is_correction_mode": "mask"},
    "seq_mask": {"is_correction_level": "seq", "is_correction_mode": "mask"},
    "geo_mask": {"is_correction_level": "geo", "is_correction_mode": "mask"},
}
THRESHOLDS = {"token": [0.8, 1.25], "seq": [0.5, 2.0], "geo": [0.85, 1.2]}


def load(root, name):
    spec = importlib.util.spec_from_file_location(f"molt.models.{name.stem}", root / name)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def losses(module, tokens):
    now, mask = (torch.tensor(tokens[name], dtype=torch.float64) for name in ("logprobs", "mask"))
    old, sampler, advantages = (
        torch.tensor(tokens[name], dtype=torch.float64) for name in ("old", "sampler", "advantages")
    )
    for name, changes in LOSSES.items():
        fields = {"clip_eps_low": 0.2, "clip_eps_high": 0.28, **changes}
        if "is_correction_level" in fields:
            fields["is_correction_threshold"] = THRESHOLDS[fields["is_correction_level"]]
        leaf = now.clone().requires_grad_()
        each = advantages.unsqueeze(1).expand_as(mask)
        loss, *_ = module.PolicyLoss(**fields)(leaf, old, each, mask, rollout_log_probs=sampler)
        loss.backward()
        yield f"loss/{name}", {"loss": loss.item(), "slope": leaf.grad.tolist()}


def advantages(module, rewards):
    for where in ("mixed", "edges"):
        one = rewards[where]
        count = len(one["rewards"])
        groups = [[row for row in range(count) if one["group"][row] == group] for group in dict.fromkeys(one["group"])]
        mask = torch.tensor([[float(t < length) for t in range(max(one["lengths"]))] for length in one["lengths"]])
        context = module.AdvantageContext(
            sample_to_rollout=torch.arange(count), exp_len=[count], action_masks=[mask], kl_coef=0.0, gamma=1.0,
            lam=1.0, kls=[torch.zeros_like(mask)],
        )  # fmt: skip
        for name in ("grpo", "dr_grpo", "rloo", "reinforce_baseline"):
            found, _ = module.get_advantage_estimator(name)(torch.tensor(one["rewards"]), groups, context)
            yield f"advantage/{name}/{where}", found[0][:, 0].tolist()


def main() -> None:
    root = Path(sys.argv[1])
    for package in ("molt", "molt.models"):
        sys.modules[package] = types.ModuleType(package)
        sys.modules[package].__path__ = []
    load(root, Path("molt/models/utils.py"))
    loss, advantage = load(root, Path("molt/models/loss.py")), load(root, Path("molt/trainer/algorithm/advantage.py"))
    commit = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    cases = dict(losses(loss, INPUTS["tokens"]["tokens"])) | dict(advantages(advantage, INPUTS["rewards"]))
    result = {"commit": commit.stdout.strip(), "torch": torch.__version__, "cases": cases}
    target = HERE / "parity_molt.json"
    target.write_text(json.dumps(result, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{len(cases)} cases of {result['commit'][:7]}")


if __name__ == "__main__":
    main()
