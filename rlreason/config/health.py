"""The recipe's table ``[health]``: from where on a run's numbers are worth a warning. docs/health.md has each rule."""

from __future__ import annotations

from pydantic import Field, field_validator

from rlreason import extensions
from rlreason.config.engine import Section


class HealthConfig(Section):
    """Limits of the health rules, all in one place. They change no result, only what is said about it.

    Example: ``[health]`` with ``truncated = 0.5`` warns where more than half of the completions are cut off.
    """

    #: Steps that a share is averaged over: the newest so many of the stage.
    window: int = Field(10, ge=1)
    #: Largest share of completions whose check broke or ran past its limit, in training and in held-out evaluations.
    no_verdict: float = Field(0.10, ge=0, le=1)
    #: Smallest share of a step's groups that are learnt from.
    groups_kept: float = Field(0.25, ge=0, le=1)
    #: Largest share of completions that are cut off at ``max_tokens``.
    truncated: float = Field(0.20, ge=0, le=1)
    #: Entropy in nats a token below which the policy draws nearly the same every time; warned of where it is also
    #: below ``entropy_left``.
    entropy: float = Field(0.02, ge=0)
    #: Share of the entropy of the stage's first steps below which it has collapsed, together with ``entropy``.
    entropy_left: float = Field(0.2, ge=0, le=1)
    #: Largest gradient norm, in medians of the steps before.
    grad_norm: float = Field(10.0, gt=1)
    #: Largest drop of held-out accuracy below its best, in shares, while the reward rises; a drop within twice the
    #: standard error of the difference is none.
    heldout_drop: float = Field(0.05, ge=0, le=1)
    #: Largest mean length of completions, in lengths of 20 steps before.
    length_growth: float = Field(2.0, gt=1)
    #: Largest KL divergence between sampler and trainer in nats a token (``mismatch/k3``), at staleness 0. Healthy is
    #: about 2e-4 for a dense model and 1e-3 to 2e-3 for a mixture of experts, whose routers may choose other experts.
    kl_dense: float = Field(1e-3, gt=0)
    #: The same limit for a mixture of experts.
    kl_moe: float = Field(5e-3, gt=0)
    #: Smallest entropy of a layer's load of experts, between 0 (every token goes to the same experts) and 1 (balanced),
    #: in the layer with the least of it.
    experts_entropy: float = Field(0.25, ge=0, le=1)
    #: Largest share of a model's experts that get no token, in steps whose tokens could reach each of them 20 times.
    experts_dead: float = Field(0.25, ge=0, le=1)
    #: Rules of your own beside those: `path/file.py:function`, `pkg.mod:function`, or a name that an installed package
    #: offers (docs/extending.md).
    rules: tuple[str, ...] = ()

    @field_validator("rules")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            extensions.check(extensions.HEALTH, name)
        return value
