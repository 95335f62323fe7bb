"""Writes parity.json: what verl, TRL and Liger compute from fixed inputs, by calling their own functions.

Run in an environment of its own (CPU is enough), then commit the result:

    python -m venv peers && peers/bin/pip install torch==2.13.0 trl==1.16.0
    peers/bin/pip install --no-deps verl==0.9.1 liger-kernel==0.8.5
    peers/bin/pip install ray tensordict==0.10.0 omegaconf hydra-core codetiming torchdata torch==2.13.0
    CUDA_VISIBLE_DEVICES= peers/bin/python tests/objective/make_parity.py

``test_parity.py`` holds our computations against it, and needs none of the peers. Nothing here imports rlreason.
"""

import importlib.metadata
import json
import math
from pathlib import Path

import numpy as np
import torch
from liger_kernel.chunked_loss.grpo_loss import LigerFusedLinearGRPOFunction, LigerFusedLinearGRPOLoss
from peer_trl import T, gradient_case, trl_cases
from verl.trainer.config import AlgoConfig
from verl.trainer.ppo import core_algos
from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_and_rejection_mask
from verl.workers.config import ActorConfig

TARGET = Path(__file__).with_name("parity.json")
#: LossInputs per sequence: [N]. 0 in the middle of a sequence is a token that another wrote (a tool).
LENGTHS = {"tokens": (6, 4, 5, 6, 3, 6, 2, 5, 6), "even": (6, 4, 5, 6, 3, 6, 2, 5), "empty": (6, 4, 0, 3)}


def make_tokens(name, seed):
    """Log-probs of the tokens of some sequences, with every kind of clipped token; [N, T]. Float64."""
    generator = torch.Generator().manual_seed(seed)
    lengths = LENGTHS[name]

    def normal(scale):
        return torch.randn((len(lengths), T), generator=generator, dtype=torch.float64) * scale

    mask = torch.tensor([[float(t < length) for t in range(T)] for length in lengths], dtype=torch.float64)
    mask[0, 2] = 0.0
    now = -normal(0.7).abs() - 1.7
    old = now + normal(0.25)
    # ρ = e^±1.6, on either sign of the advantage: beyond a dual clip of 3, and below every lower bound
    for row in range(min(4, len(lengths))):
        old[row, 0], old[row, 1] = now[row, 0] - 1.6, now[row, 1] + 1.6
    values = {"logprobs": now, "old": old, "sampler": old + normal(0.3), "reference": now + normal(0.4)}
    values = {name: value.clamp(max=-0.01) for name, value in values.items()}
    signs = torch.tensor([1.0, -1.0] * len(lengths), dtype=torch.float64)[: len(lengths)]
    values["advantages"] = normal(1.0)[:, 0].abs() * signs
    return {**values, "mask": mask}


def make_rewards():
    """Rewards in ragged groups whose members are mixed up."""
    return {
        "mixed": {
            "rewards": [0.9, 0.1, 0.4, 1.3, -0.2, 0.35, 0.6, 0.75, 0.05],
            "group": [7, 2, 7, 2, 7, 4, 2, 7, 4],
            "lengths": LENGTHS["tokens"],
        },
        # One of a kind, a group of equals, binary rewards.
        "edges": {
            "rewards": [0.7, 0.3, 0.3, 0.3, 1.0, 0.0, 0.0],
            "group": [0, 1, 1, 1, 2, 2, 2],
            "lengths": (3, 2, 6, 4, 5, 1, 6),
        },
    }


def verl_reward_tensors(rewards):
    mask = torch.tensor([[float(t < n) for t in range(T)] for n in rewards["lengths"]], dtype=torch.float64)
    scores = torch.zeros_like(mask)
    for row, (reward, length) in enumerate(zip(rewards["rewards"], rewards["lengths"], strict=True)):
        scores[row, length - 1] = reward
    return scores, mask


def verl_advantages(inputs):
    """Each estimator's advantage of the first token, [N] (all tokens of a sequence have the same)."""
    extra = {
        "grpo": {},
        "grpo_no_std": {"norm_adv_by_std_in_grpo": False},
        "grpo_vectorized": {},
        "rloo": {},
        "rloo_vectorized": {},
        "opo": {},
        "reinforce_plus_plus": {"config": AlgoConfig()},
        "reinforce_plus_plus_baseline": {},
    }
    for where, rewards in inputs.items():
        scores, mask = verl_reward_tensors(rewards)
        for name, settings in extra.items():
            estimator = core_algos.get_adv_estimator_fn(name.removesuffix("_no_std"))
            index = np.array(rewards["group"])
            advantages, _ = estimator(token_level_rewards=scores.clone(), response_mask=mask, index=index, **settings)
            assert torch.equal(advantages, advantages[:, :1] * mask)
            yield f"verl/advantage/{name}/{where}", {"advantages": advantages[:, 0]}


#: case: (loss, aggregation, what ActorConfig changes)
VERL_LOSSES = {
    "vanilla": ("vanilla", "token-mean", {}),
    "vanilla_sequence": ("vanilla", "seq-mean-token-mean", {}),
    "vanilla_sum_norm": ("vanilla", "seq-mean-token-sum-norm", {}),
    "vanilla_sum": ("vanilla", "seq-mean-token-sum", {}),
    "vanilla_no_dual": ("vanilla", "token-mean", {"clip_ratio_c": 1e9}),
    "gspo": ("gspo", "seq-mean-token-mean", {"clip_ratio_low": 0.05, "clip_ratio_high": 0.08}),
    "gspo_token": ("gspo", "token-mean", {"clip_ratio_low": 0.05, "clip_ratio_high": 0.08}),
    "cispo": ("cispo", "token-mean", {"clip_ratio_high": 0.4}),
    "cispo_sum_norm": ("cispo", "seq-mean-token-sum-norm", {"clip_ratio_high": 0.4}),
    "sapo": ("sapo", "seq-mean-token-mean", {}),
    "geo_mean": ("geo_mean", "token-mean", {"clip_ratio_low": 0.4, "clip_ratio_high": 0.4}),
    "dppo_tv": ("dppo_tv", "token-mean", {"clip_ratio_low": 0.05, "clip_ratio_high": 0.08, "clip_ratio_c": 20.0}),
    "dppo_tv_default": ("dppo_tv", "token-mean", {"clip_ratio_low": 0.05, "clip_ratio_high": 0.08}),
}
#: (how the mismatch is corrected, arguments of verl's rollout correction)
VERL_CORRECTIONS = [
    ("tis_token", {"rollout_is": "token", "rollout_is_threshold": 1.2}),
    ("tis_sequence", {"rollout_is": "sequence", "rollout_is_threshold": 1.5}),
    ("icepop", {"rollout_is": "token", "rollout_is_threshold": "0.8_1.25"}),
    ("reject_token", {"rollout_is": "token", "rollout_is_threshold": 1e9,
                      "rollout_rs": "token_k1", "rollout_rs_threshold": "0.8_1.25"}),
    ("reject_sequence", {"rollout_is": "sequence", "rollout_is_threshold": 1e9,
                         "rollout_rs": "seq_sum_k1", "rollout_rs_threshold": "0.5_2"}),
]  # fmt: skip


def actor(**changes):
    fields = {"clip_ratio_low": 0.2, "clip_ratio_high": 0.28, **changes}
    return ActorConfig(strategy="fsdp", rollout_n=8, ppo_micro_batch_size_per_gpu=1, **fields)


def verl_losses(tokens, where):
    mask = tokens["mask"]
    advantages = tokens["advantages"].unsqueeze(1).expand_as(mask)
    for case, (name, mode, changes) in VERL_LOSSES.items():
        if where == "empty" and case in ("vanilla_sum", "dppo_tv", "dppo_tv_default"):
            continue  # nothing that the tokens do not say

        def loss_of(now, name=name, mode=mode, changes=changes):
            return core_algos.get_policy_loss_fn(name)(tokens["old"], now, advantages, mask, mode, actor(**changes))[0]

        yield f"verl/loss/{case}/{where}", gradient_case(tokens["logprobs"], loss_of)


def verl_corrections(tokens):
    for name, settings in VERL_CORRECTIONS:
        weights, mask, _ = compute_rollout_correction_and_rejection_mask(
            tokens["old"], tokens["sampler"], tokens["mask"], **settings
        )
        advantages = tokens["advantages"].unsqueeze(1).expand_as(mask)

        def loss_of(now, weights=weights, mask=mask, advantages=advantages):
            rollout = weights.batch["rollout_is_weights"] if weights is not None else None
            vanilla = core_algos.get_policy_loss_fn("vanilla")
            return vanilla(tokens["old"], now, advantages, mask, "token-mean", actor(clip_ratio_c=1e9), rollout)[0]

        yield f"verl/correction/{name}", {**gradient_case(tokens["logprobs"], loss_of), "kept": mask}


def verl_kl(tokens):
    wild = {"logprobs": torch.tensor([[-30.0, -1.0, -4.0]], dtype=torch.float64)}
    wild["reference"] = torch.tensor([[-2.0, -26.0, -1.0]], dtype=torch.float64)
    for where, values in (("tokens", tokens), ("wild", wild)):
        for name in ("k1", "k2", "low_var_kl", *(["k3+"] if where == "tokens" else [])):
            leaf = values["logprobs"].clone().requires_grad_()
            value = core_algos.kl_penalty(leaf, values["reference"], name)
            value.sum().backward()
            yield f"verl/kl/{name}/{where}", {"value": value.detach(), "slope": leaf.grad}


LIGER_CASES = {
    "dapo": {},
    "grpo": {"loss_type": "grpo"},
    "bnpo": {"loss_type": "bnpo"},
    "dr_grpo": {"loss_type": "dr_grpo", "max_completion_length": 11},
    "cispo": {"loss_type": "cispo", "epsilon_high": 1.5},
    "sapo": {"loss_type": "sapo"},
    "gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_low": 0.05, "epsilon_high": 0.08},
    "delta": {"delta": 4.0},
    "kl": {"beta": 0.04},
    "kl_unbiased": {"beta": 0.04, "use_bias_correction_kl": True},
}


def liger_cases(tokens):
    """Liger's function of log-probs in float64."""
    for name, settings in LIGER_CASES.items():

        def loss_of(now, settings=settings):
            return LigerFusedLinearGRPOFunction.ppo_loss_fn(
                now, tokens["mask"], tokens["advantages"], tokens["mask"], old_per_token_logps=tokens["old"],
                ref_per_token_logps=tokens["reference"], **{"beta": 0.0, **settings},
            )[0]  # fmt: skip

        yield f"liger/loss/{name}", gradient_case(tokens["logprobs"], loss_of)


def make_head(tokens):
    """Hidden states and head, float32, for Liger's loss that starts from them."""
    generator = torch.Generator().manual_seed(5)
    rows = len(LENGTHS["tokens"])
    return {
        "hidden": torch.randn((rows, T, 5), generator=generator),
        "head": torch.randn((7, 5), generator=generator),
        "ids": torch.randint(7, (rows, T), generator=generator),
    }


def liger_head_cases(tokens, head):
    for name, settings in LIGER_CASES.items():
        hidden, weight = head["hidden"].clone().requires_grad_(), head["head"].clone().requires_grad_()
        module = LigerFusedLinearGRPOLoss(compiled=False, **{"beta": 0.0, "use_ref_model": True, **settings})
        loss, _ = module(
            hidden, weight, head["ids"], tokens["mask"].float(), tokens["advantages"].float(),
            ref_per_token_logps=tokens["reference"].float(), old_per_token_logps=tokens["old"].float(),
        )  # fmt: skip
        loss.backward()
        yield f"liger/head/{name}", {"loss": loss.detach(), "d_hidden": hidden.grad, "d_head": weight.grad}


def wild_cases(wild):
    """Log-ratios of ±12 and ±25: where each peer bounds them."""
    advantages, mask = wild["advantages"].unsqueeze(1).expand_as(wild["mask"]), wild["mask"]
    for name in ("vanilla", "gspo"):

        def loss_of(now, name=name):
            return core_algos.get_policy_loss_fn(name)(
                wild["old"], now, advantages, mask, "token-mean", actor(clip_ratio_c=1e12)
            )[0]

        yield f"verl/wild/{name}", gradient_case(wild["logprobs"], loss_of)

    def liger(now):
        return LigerFusedLinearGRPOFunction.ppo_loss_fn(
            now, mask, wild["advantages"], mask, old_per_token_logps=wild["old"], beta=0.0
        )[0]

    yield "liger/wild", gradient_case(wild["logprobs"], liger)


def plain(value):
    """Tensors as lists; 17 digits keep a float64."""
    if isinstance(value, torch.Tensor):
        return plain(value.tolist())
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def main() -> None:
    tokens = {name: make_tokens(name, seed) for seed, name in enumerate(LENGTHS)}
    wild = {"logprobs": torch.full((4, 1), -1.0, dtype=torch.float64), "mask": torch.ones((4, 1), dtype=torch.float64)}
    wild["old"] = wild["logprobs"] - torch.tensor([[12.0], [12.0], [25.0], [-25.0]], dtype=torch.float64)
    wild["advantages"] = torch.tensor([0.5, -0.5, -1.0, -1.0], dtype=torch.float64)
    rewards = make_rewards()
    even = {
        "even": [0.9, 0.1, 0.4, 1.3, -0.2, 0.35, 0.6, 0.75],
        "unscorable": [0.9, float("nan"), 0.4, 1.3, -0.2, 0.35, 0.6, 0.75],
        "equal": [0.1, 0.1, 0.1, 0.1, -0.2, 0.35, 0.6, 0.75],
    }
    head = make_head(tokens["tokens"])
    cases = dict(verl_advantages(rewards))
    cases |= dict(verl_losses(tokens["tokens"], "tokens")) | dict(verl_losses(tokens["empty"], "empty"))
    cases |= dict(verl_corrections(tokens["tokens"])) | dict(verl_kl(tokens["tokens"]))
    cases |= dict(trl_cases(tokens["even"], even))
    cases |= (
        dict(liger_cases(tokens["tokens"])) | dict(liger_head_cases(tokens["tokens"], head)) | dict(wild_cases(wild))
    )
    packages = ("torch", "verl", "trl", "liger_kernel")
    result = {
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "tokens": {**tokens, "wild": wild},
        "rewards": {**rewards, **{name: {"rewards": values} for name, values in even.items()}},
        "head": head,
        "cases": cases,
    }
    TARGET.write_text(json.dumps(plain(result), separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{len(cases)} cases, {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main()
