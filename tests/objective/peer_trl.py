"""TRL's GRPO step by its own code: GRPOTrainer's two methods, called with a stand-in for the trainer.

Imported by make_parity.py and by bench/objective, in the peers' environment (make_parity.py says which).
"""

import collections
import contextlib
from types import SimpleNamespace

import torch
from trl import GRPOTrainer

T = 6


def gradient_case(logprobs, loss_of):
    leaf = logprobs.clone().requires_grad_()
    loss = loss_of(leaf)
    loss.backward()
    return {"loss": loss.detach(), "slope": leaf.grad}


def trainer(tokens, rewards, **changes):
    """What GRPOTrainer's two methods read from ``self``: TRL 1.16 defaults, the tokens given, one process."""
    args = {
        "delta": None, "use_bias_correction_kl": False, "sapo_temperature_pos": 1.0, "sapo_temperature_neg": 1.05,
        "vespo_k_pos": 2.0, "vespo_k_neg": 3.0, "vespo_lambda_pos": 3.0, "vespo_lambda_neg": 2.0, "report_to": [],
        "steps_per_generation": 1, "gradient_accumulation_steps": 1, "per_device_train_batch_size": 8,
        "gradient_checkpointing_kwargs": None,
    }  # fmt: skip
    own = {
        "loss_type": "dapo", "importance_sampling_level": "token", "epsilon_low": 0.2, "epsilon_high": 0.2, "beta": 0.0,
        "scale_rewards": "group", "use_vllm": False, "vllm_importance_sampling_correction": True,
        "vllm_importance_sampling_mode": "sequence_mask", "vllm_importance_sampling_clip_max": 3.0,
        "vllm_importance_sampling_clip_min": None, "off_policy_mask_threshold": None, "max_completion_length": 11,
        "mask_truncated_completions": False, "num_generations": 4, "current_gradient_accumulation_steps": 1,
        "top_entropy_quantile": 1.0, "multi_objective_aggregation": "sum_then_normalize", "num_iterations": 2,
    }  # fmt: skip
    args |= {key: value for key, value in changes.items() if key in args}
    own |= {key: value for key, value in changes.items() if key in own}
    assert not changes.keys() - args.keys() - own.keys()
    accelerator = SimpleNamespace(
        device=torch.device("cpu"), process_index=0, num_processes=1, is_main_process=True,
        gather=lambda x: x, reduce=lambda x, reduction: x, sync_gradients=True,
    )  # fmt: skip
    policy = SimpleNamespace(training=True, is_gradient_checkpointing=False, which="old")
    return SimpleNamespace(
        **own, args=SimpleNamespace(**args), accelerator=accelerator, model=policy, environment_factories=None,
        ref_model=SimpleNamespace(which="reference"), tools=None, environments=None, pad_to_multiple_of=None,
        _tokenizer=SimpleNamespace(pad_token_id=0), eos_token_ids=[1], aux_loss_enabled=False, _is_vlm=False,
        _entropy_bonus_enabled=False, reward_weights=torch.ones(1), reward_func_names=["r"], reward_funcs=[None],
        state=SimpleNamespace(global_step=0), log_multimodal=False, chat_template_kwargs={}, _pending_extra_logs={},
        _pending_metrics={}, _metrics={"train": collections.defaultdict(list)},
        _logs=collections.defaultdict(list, rewards=collections.defaultdict(list)),
        get_off_policy_mask=GRPOTrainer.get_off_policy_mask, get_gamma_weights=GRPOTrainer.get_gamma_weights,
        _calculate_rewards=lambda *_: torch.tensor(rewards).unsqueeze(1),
        _get_per_token_logps_and_entropies=lambda model, *_, **__: (tokens[model.which], torch.zeros(1, T), None),
        _generate=lambda prompts: generated(tokens),
    )  # fmt: skip


def generated(tokens):
    """What TRL's own ``_generate`` returns: ids, tool masks and the sampler's log-probs, as lists without padding."""
    lengths = [max([t + 1 for t in range(T) if row[t]], default=1) for row in tokens["mask"].tolist()]
    # the last id is the end token (1), except in row 3, which ran into the limit
    ids = [[*[5] * (n - 1), 5 if row == 3 else 1] for row, n in enumerate(lengths)]

    def cut(name):
        return [row[:n] for row, n in zip(tokens[name].tolist(), lengths, strict=True)]

    return [[2]] * len(ids), ids, [[int(x) for x in row] for row in cut("mask")], ids, cut("sampler"), {}, None, None


TRL_CASES = {
    "dapo": {},
    "grpo": {"loss_type": "grpo"},
    "bnpo": {"loss_type": "bnpo"},
    "dr_grpo": {"loss_type": "dr_grpo", "scale_rewards": "none"},
    "dapo_clip_higher": {"epsilon_high": 0.28},
    "cispo": {"loss_type": "cispo", "epsilon_high": 1.5, "scale_rewards": "batch"},
    "cispo_sequence": {"loss_type": "cispo", "epsilon_high": 1.05, "importance_sampling_level": "sequence"},
    "sapo": {"loss_type": "sapo"},
    "gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_low": 0.05, "epsilon_high": 0.08},
    "luspo": {"loss_type": "luspo", "importance_sampling_level": "sequence", "epsilon_low": 0.05, "epsilon_high": 0.08},
    "delta": {"delta": 4.0},
    "kl": {"beta": 0.04, "loss_type": "grpo"},
    "kl_unbiased": {"beta": 0.04, "use_bias_correction_kl": True},
    "kl_unbiased_sequence": {"beta": 0.04, "use_bias_correction_kl": True, "importance_sampling_level": "sequence"},
    "off_policy_mask": {"off_policy_mask_threshold": 0.05, "beta": 0.04},
    "mask_truncated": {"loss_type": "grpo", "mask_truncated_completions": True},
    "mask_truncated_dapo": {"mask_truncated_completions": True},
    "vllm_default": {"use_vllm": True},
    "vllm_token_truncate": {
        "use_vllm": True, "vllm_importance_sampling_mode": "token_truncate", "vllm_importance_sampling_clip_max": 1.2,
    },
    "vllm_token_mask": {
        "use_vllm": True, "vllm_importance_sampling_mode": "token_mask", "vllm_importance_sampling_clip_max": 1.25,
        "vllm_importance_sampling_clip_min": 0.8,
    },
    "vllm_sequence_truncate": {
        "use_vllm": True, "vllm_importance_sampling_mode": "sequence_truncate",
        "vllm_importance_sampling_clip_max": 1.5, "beta": 0.04,
    },
    "vllm_sequence_mask": {
        "use_vllm": True, "vllm_importance_sampling_clip_max": 1.5, "vllm_importance_sampling_clip_min": 0.5,
    },
}  # fmt: skip


@contextlib.contextmanager
def float64_by_default():
    """TRL makes tensors out of Python numbers: they shall not round the comparison to float32."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def trl_case(tokens, rewards, parts=None, **settings):
    """One step of TRL: advantages and importance weights, then the loss, of all rows or the mean over ``parts``."""
    with float64_by_default():
        stand_in = trainer(tokens, rewards, **settings)
        inputs = GRPOTrainer._generate_and_score_completions(stand_in, [{"prompt": "?"} for _ in rewards])

        def loss_of(now):
            losses = []
            for rows in parts or [list(range(len(rewards)))]:
                stand_in._get_per_token_logps_and_entropies = lambda *_, rows=rows, **__: (
                    now[rows],
                    torch.zeros(len(rows), T),
                    None,
                )
                some = {key: value if key == "num_items_in_batch" else value[rows] for key, value in inputs.items()}
                losses.append(GRPOTrainer._compute_loss(stand_in, None, some))
            return torch.stack(losses).sum()

        case = gradient_case(tokens["logprobs"], loss_of)
    weights = inputs.get("importance_sampling_ratio")
    return {**case, "advantages": inputs["advantages"], **({} if weights is None else {"weights": weights})}


def trl_cases(tokens, rewards):
    for name, settings in TRL_CASES.items():
        yield f"trl/{name}", trl_case(tokens, rewards["even"], **settings)
    yield "trl/scale_batch", trl_case(tokens, rewards["even"], scale_rewards="batch")
    yield "trl/unscorable", trl_case(tokens, rewards["unscorable"])
    yield "trl/equal_rewards", trl_case(tokens, rewards["equal"])
    # Two micro-batches of one step, [3, 5] rows: what gradient accumulation makes of each normalisation.
    parts = [[0, 1, 2], [3, 4, 5, 6, 7]]
    for name in ("grpo", "bnpo", "dapo"):
        settings = {"loss_type": name, "current_gradient_accumulation_steps": 2, "steps_per_generation": 2}
        yield f"trl/split/{name}", trl_case(tokens, rewards["even"], parts, **settings)
