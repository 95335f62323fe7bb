"""REINFORCE++ (arXiv 2501.03262): no group baseline; rewards whitened over the batch; KL in the reward.

    R_i = r_i − 0.01 · Σ_t k1_it,   A_i = (R_i − mean) / std over all tokens of the batch
    J = 1/Σ|o_i| Σ_i Σ_t min(ρ_it A_i, clip(ρ_it, 0.8, 1.2) A_i)

The paper subtracts from a token only the KL that follows it; here it is the sequence's sum (docs/objectives.md).
"""

from rlreason.objective.spec import ObjectiveSpec

SPEC = ObjectiveSpec(
    baseline="none", scale="batch_whiten", clip_low=0.2, clip_high=0.2, kl_coef=0.01, kl_estimator="k1", kl_in="reward"
)
