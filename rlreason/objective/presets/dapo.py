"""DAPO (arXiv 2503.14476): clip-higher, one mean over all tokens, soft overlong penalty, no KL.

    A_i = (r_i − mean_g) / std_g,   r includes 0 down to −1 over the last fifth of max_tokens
    J = 1/Σ|o_i| Σ_i Σ_t min(ρ_it A_i, clip(ρ_it, 0.8, 1.28) A_i)

Its dynamic sampling is the stage's ``drop_zero_variance``. The penalty starts at the same share of the limit as in
the paper: 4,096 of 20,480 tokens.
"""

from rlreason.objective.spec import ObjectiveSpec

SPEC = ObjectiveSpec(clip_low=0.2, clip_high=0.28, overlong="soft_penalty", overlong_share=0.2)
