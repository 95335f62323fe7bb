"""Objectives by the names of their papers, with their papers' defaults: one table. No torch.

N = completions, |o_i| = tokens of completion i, g = its group, r = reward, ρ = π/π_old. The correction of the sampler's
mismatch (``tis``, ours) is left out of the formulas here; ``ObjectiveSpec.formula`` prints it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType

from rlreason.errors import nearest
from rlreason.objective.spec import ObjectiveSpec, refuse_old_names


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """One line of the table. Example: ``TABLE["grpo"].paper == "GRPO as published (DeepSeekMath, …)"``."""

    #: What it is, with the paper.
    paper: str
    #: As in the paper.
    formula: str
    spec: ObjectiveSpec
    #: Where we had to choose.
    note: str = ""


TABLE: Mapping[str, Preset] = MappingProxyType(
    {
        "cispo": Preset(
            paper="CISPO (MiniMax-M1, arXiv 2506.13585): the weight is clipped, never the gradient",
            formula="J = 1/Σ|o_i| Σ_i Σ_t stop_gradient(min(ρ_it, 5)) A_i log π_it,   A_i = (r_i − mean_g) / std_g",
            note="The paper has no lower bound and tunes the upper one without a number; 5 is ScaleRL's "
            "(arXiv 2510.13786).",
            spec=ObjectiveSpec(clip="cispo", clip_low=1.0, clip_high=4.0),
        ),
        "dapo": Preset(
            paper="DAPO (arXiv 2503.14476): clip-higher, one mean over all tokens, soft overlong penalty, no KL",
            formula="J = 1/Σ|o_i| Σ_i Σ_t min(ρ_it A_i, clip(ρ_it, 0.8, 1.28) A_i),   A_i = (r_i − mean_g) / std_g,   "
            "r includes 0 down to −1 over the last fifth of max_tokens",
            note="Its dynamic sampling is the stage's ``resample``. The penalty starts at the same share of the limit "
            "as in the paper: 4,096 of 20,480 tokens.",
            spec=ObjectiveSpec(clip_low=0.2, clip_high=0.28, overlong="soft_penalty", overlong_share=0.2),
        ),
        "deepseek_v32": Preset(
            paper="DeepSeek-V3.2's GRPO (arXiv 2512.02556, 3.1): mean-only advantage, unbiased KL, no token with A < 0 "
            "of sequences that the policy has moved away from",
            formula="J = 1/N Σ_i 1/|o_i| Σ_t [ min(ρ_it A_i, clip(ρ_it, 0.8, 1.2) A_i) M_i − 0.001 · ρ_it k3_it ],   "
            "A_i = r_i − mean_g,   M_i = 0 where A_i < 0 and mean_t log(π_sampler/π) > 0.5, else 1",
            note="The paper gives no numbers for the KL and the mask: 0.001 is R1's, 0.5 TRL's example. Its other two "
            "parts are no objective: the sampling mask is kept wherever top_p, top_k or min_p truncates; experts are "
            "kept by the stage's routing replay.",
            spec=ObjectiveSpec(
                scale="none",
                aggregation="sequence",
                clip_low=0.2,
                clip_high=0.2,
                kl_coef=0.001,
                kl_estimator="k3_unbiased",
                off_policy_delta=0.5,
            ),
        ),
        "dppo_kl": Preset(
            paper="DPPO with the binary KL (arXiv 2602.04879): a trust region of divergence, where PPO clips a ratio",
            formula="J = 1/Σ|o_i| Σ_i Σ_t ρ_it A_i M_it,   ρ = π/π_sampler,   M_it = 0 where A_i pushes π further from "
            "π_sampler and KL(Bern(π_sampler) || Bern(π)) > 0.05, else 1,   A_i = (r_i − mean_g) / std_g",
            note="The bound is the recipe's to tune; 0.05 is where we begin.",
            spec=ObjectiveSpec(old="sampler", correction="none", clip="dppo_kl", clip_low=0.05, clip_high=0.05),
        ),
        "dppo_tv": Preset(
            paper="DPPO with total variation (arXiv 2602.04879): the probability itself may move so far and no further",
            formula="J = 1/Σ|o_i| Σ_i Σ_t ρ_it A_i M_it,   ρ = π/π_sampler,   M_it = 0 where A_i pushes π further from "
            "π_sampler and |π − π_sampler| > 0.2, else 1,   A_i = (r_i − mean_g) / std_g",
            note="verl and SkyRL bound the ratio by 20 beside it; here log-ratios are bounded by ±20.",
            spec=ObjectiveSpec(old="sampler", correction="none", clip="dppo_tv", clip_low=0.2, clip_high=0.2),
        ),
        "dr_grpo": Preset(
            paper="Dr. GRPO (arXiv 2503.20783): neither the length nor the deviation of a group changes a token's "
            "weight",
            formula="J = 1/(N · max_tokens) Σ_i Σ_t min(ρ_it A_i, clip(ρ_it, 0.8, 1.2) A_i),   A_i = r_i − mean_g",
            spec=ObjectiveSpec(scale="none", aggregation="sequence_sum", clip_low=0.2, clip_high=0.2),
        ),
        "flash_reinforce": Preset(
            paper="FlashREINFORCE (github.com/yifanzhang-pro/FlashREINFORCE, September 2026): one completion of a "
            "problem, the batch's mean as baseline, token ratios to the sampler, a trust region of whole sequences",
            formula="J = 1/N Σ_i 1/|o_i| Σ_t ρ_it A_i M_i,   ρ = π/π_sampler,   A_i = r_i − mean of the batch,   "
            "M_i = 0 where mean_t KL(Bern(π_sampler) || Bern(π)) > 0.003, else 1",
            note="As OpenRLHF 0.11.2 has it (seq mask, binary_kl), whose tests bound the divergence by 0.003; the "
            "paper itself was not at hand. Its filter of failed tokens by entropy is not here. Takes "
            "samples_per_problem = 1.",
            spec=ObjectiveSpec(
                baseline="batch",
                scale="none",
                old="sampler",
                correction="none",
                clip="none",
                aggregation="sequence",
                sequence_kl_max=0.003,
            ),
        ),
        "gdpo": Preset(
            paper="GDPO (arXiv 2601.05242): several rewards, each normalised in its group before they are added, so "
            "that a rare or narrow one is not drowned",
            formula="J = 1/N Σ_i 1/|o_i| Σ_t min(ρ_it A_i, clip(ρ_it, 0.8, 1.2) A_i),   A_i = (x_i − mean x) / std x "
            "over the batch,   x_i = Σ_k weight_k (r_ik − mean_g r_k) / std_g r_k",
            note="The rewards are the parts of [reward]; the paper's KL is left out, as in TRL's normalize_then_sum.",
            spec=ObjectiveSpec(rewards="apart", aggregation="sequence", clip_low=0.2, clip_high=0.2),
        ),
        "grpo": Preset(
            paper="GRPO as published (DeepSeekMath, arXiv 2402.03300, eq. 3 and 4; outcome supervision)",
            formula="J = 1/N Σ_i 1/|o_i| Σ_t [ min(ρ_it A_i, clip(ρ_it, 0.8, 1.2) A_i) − 0.04 · k3_it ],   "
            "A_i = (r_i − mean_g) / std_g",
            spec=ObjectiveSpec(aggregation="sequence", clip_low=0.2, clip_high=0.2, kl_coef=0.04),
        ),
        "gspo": Preset(
            paper="GSPO (arXiv 2507.18071): one ratio for a sequence, the geometric mean of its tokens' ratios",
            formula="J = 1/N Σ_i min(s_i A_i, clip(s_i, 1 − 3e-4, 1 + 4e-4) A_i),   "
            "s_i = (π(o_i)/π_old(o_i))^(1/|o_i|),   A_i = (r_i − mean_g) / std_g",
            spec=ObjectiveSpec(
                ratio="sequence_mean",
                clip_low=3e-4,
                clip_high=4e-4,
                aggregation="sequence",
                correction_level="sequence_mean",
            ),
        ),
        "lite_ppo": Preset(
            paper="Lite PPO (arXiv 2508.08221): group mean, deviation of the whole batch, one mean over all tokens",
            formula="J = 1/Σ|o_i| Σ_i Σ_t min(ρ_it A_i, clip(ρ_it, 0.8, 1.2) A_i),   A_i = (r_i − mean_g) / std_batch",
            spec=ObjectiveSpec(scale="batch_std", clip_low=0.2, clip_high=0.2),
        ),
        "maxrl": Preset(
            paper="MaxRL (arXiv 2602.02710): the advantage over the mean, in units of the mean, so rare successes "
            "weigh the most",
            formula="J = 1/Σ|o_i| Σ_i Σ_t min(ρ_it A_i, clip(ρ_it, 0.8, 1.2) A_i),   "
            "A_i = (r_i − mean_g) / mean_g, 0 where mean_g = 0",
            note="For rewards of 0 and 1: mean_g is a share of successes. A reward below 0, of which the paper says "
            "nothing, is refused.",
            spec=ObjectiveSpec(scale="group_mean", clip_low=0.2, clip_high=0.2),
        ),
        "r1": Preset(
            paper="DeepSeek-R1's GRPO (arXiv 2501.12948, Nature 645, 633–638): a wide clip and a weak KL",
            formula="J = 1/N Σ_i 1/|o_i| Σ_t [ min(ρ_it A_i, clip(ρ_it, 1 − 10, 1 + 10) A_i) − 0.001 · k3_it ],   "
            "A_i = (r_i − mean_g) / std_g",
            note="A ratio is positive, so the lower bound of −9 never acts.",
            spec=ObjectiveSpec(aggregation="sequence", clip_low=10.0, clip_high=10.0, kl_coef=0.001),
        ),
        "reinforce_pp": Preset(
            paper="REINFORCE++ (arXiv 2501.03262): no group baseline; rewards whitened over the batch; KL in the "
            "reward",
            formula="J = 1/Σ|o_i| Σ_i Σ_t min(ρ_it A_i, clip(ρ_it, 0.8, 1.2) A_i),   R_i = r_i − 0.01 · Σ_t k1_it,   "
            "A_i = (R_i − mean) / std over all tokens of the batch",
            note="The paper subtracts from a token only the KL that follows it; here it is the sequence's sum "
            "(docs/objectives.md).",
            spec=ObjectiveSpec(
                baseline="none",
                scale="batch_whiten",
                clip_low=0.2,
                clip_high=0.2,
                kl_coef=0.01,
                kl_estimator="k1",
                kl_in="reward",
            ),
        ),
        "reinforce_pp_baseline": Preset(
            paper="REINFORCE++-baseline (arXiv 2501.03262): group mean, then whitened over the batch; k2 in the loss",
            formula="J = 1/Σ|o_i| Σ_i Σ_t [ min(ρ_it A_i, clip(ρ_it, 0.8, 1.2) A_i) − 0.001 · k2_it ],   "
            "A_i = (x_i − mean x) / std x over all tokens of the batch,   x_i = r_i − mean_g",
            spec=ObjectiveSpec(scale="batch_whiten", clip_low=0.2, clip_high=0.2, kl_coef=0.001, kl_estimator="k2"),
        ),
        "rloo": Preset(
            paper="RLOO (arXiv 2402.14740): REINFORCE with the mean reward of the other samples as baseline; KL in the "
            "reward",
            formula="J = 1/(N · max_tokens) Σ_i Σ_t A_i log π_it,   R_i = r_i − 0.05 · Σ_t k1_it,   "
            "A_i = R_i − mean of the other R_j",
            note="The sum over the sequence is divided by max_tokens, a constant, to keep learning rates comparable. "
            "The paper tries several KL weights; 0.05 is TRL's.",
            spec=ObjectiveSpec(
                baseline="leave_one_out",
                scale="none",
                ratio="on_policy",
                clip="none",
                aggregation="sequence_sum",
                kl_coef=0.05,
                kl_estimator="k1",
                kl_in="reward",
            ),
        ),
        "sapo": Preset(
            paper="SAPO (arXiv 2511.20347): a soft gate where others clip, steeper for negative advantages",
            formula="J = 1/N Σ_i 1/|o_i| Σ_t 4/τ_i · σ(τ_i (ρ_it − 1)) · A_i,   τ_i = 1 if A_i > 0 else 1.05,   "
            "A_i = (r_i − mean_g) / std_g",
            spec=ObjectiveSpec(clip="sapo", sapo_tau_positive=1.0, sapo_tau_negative=1.05, aggregation="sequence"),
        ),
    }
)

#: The objective of each name.
PRESETS: Mapping[str, ObjectiveSpec] = MappingProxyType({name: one.spec for name, one in TABLE.items()})


def expand(value: object) -> object:
    """A recipe's ``objective``: ``"dapo"``, or ``{ preset = "dapo", clip_high = 0.3 }``, as the fields of a spec.

    Raises ValueError for a preset that does not exist, and for a value that has another name now. Anything else passes
    unchanged.
    """
    if isinstance(value, str):
        return preset(value)
    if isinstance(value, dict):
        refuse_old_names(value)
        if "preset" in value:
            changes = dict(value)
            return {**asdict(preset(changes.pop("preset"))), **changes}
    return value


def preset(name: object) -> ObjectiveSpec:
    """The preset ``name``. Raises ValueError with the known ones."""
    if not isinstance(name, str) or name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}{nearest(str(name), PRESETS)}; known: {', '.join(PRESETS)}")
    return PRESETS[name]
