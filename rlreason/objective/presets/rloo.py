"""RLOO (arXiv 2402.14740): REINFORCE with the mean reward of the other samples as baseline; KL in the reward.

    R_i = r_i − 0.05 · Σ_t k1_it,   A_i = R_i − mean of the other R_j
    J = 1/(N · max_tokens) Σ_i Σ_t A_i log π_it

The sum over the sequence is divided by max_tokens, a constant, to keep learning rates comparable. The paper tries
several KL weights; 0.05 is TRL's.
"""

from rlreason.objective.spec import ObjectiveSpec

SPEC = ObjectiveSpec(
    baseline="leave_one_out",
    scale="none",
    ratio="on_policy",
    clip="none",
    aggregation="sequence_sum",
    kl_coef=0.05,
    kl_estimator="k1",
    kl_in="reward",
)
