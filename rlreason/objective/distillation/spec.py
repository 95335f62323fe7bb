"""Which divergence is computed, over which words: names, formulas, and what can't be asked for.

q = teacher, p = student, y = the drawn token, S = the teacher's k most probable words, T = all others (the tail).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Divergence = Literal["forward", "reverse", "jsd"]
Support = Literal["full", "tail", "unbiased", "sampled"]

_FULL = {
    "reverse": "KL(p||q) = Σ_v p_v (log p_v − log q_v)",
    "forward": "KL(q||p) = Σ_v q_v (log q_v − log p_v)",
    "jsd": "J = β KL(q||M) + (1−β) KL(p||M), M = βq + (1−β)p",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillationSpec:
    """Loss of one token. Example: ``DistillationSpec(divergence="jsd", beta=0.5, support="tail")``.

    support "full": all words that both models have; "tail": S and one word that stands for T; "unbiased": S in full
    and T by the drawn token; "sampled": the drawn token alone. The last two are estimates of the reverse KL's gradient,
    need rows that the student drew, and weigh a token by ρ = min(p_y/μ_y, ``ratio_cap``), μ the sampler's probability.
    """

    divergence: Divergence = "reverse"
    #: Of jsd, between 0 and 1: GKD's (arXiv 2306.13649); raw J at 0.01 is about a hundredth of the forward KL.
    beta: float = 0.5
    support: Support = "full"
    #: Divides both models' logits; other than 1 with full support only.
    temperature: float = 1.0
    ratio_cap: float = 2.0
    #: log q of a word is at least this, whatever the support. None: a token with p_v > 0 where q_v = 0 has no finite
    #: reverse KL, and is left out.
    floor: float | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for what would be another loss under the same name."""
        for name, value, known in (
            ("divergence", self.divergence, get_args(Divergence)),
            ("support", self.support, get_args(Support)),
        ):
            if value not in known:
                raise ValueError(f"{name} = {value!r}: known are {', '.join(known)}")
        if self.divergence == "jsd" and not 0.0 < self.beta < 1.0:
            raise ValueError(
                f"jsd = {self.beta:g}: GKD's J_β is 0 at both ends, and so is its gradient: say "
                'divergence = "forward" or "reverse" instead'
            )
        if self.support in ("unbiased", "sampled") and self.divergence != "reverse":
            raise ValueError(
                f'support = "{self.support}" estimates the gradient of the reverse KL from tokens that the student '
                f'drew; the {self.divergence} divergence needs support = "full" or "tail"'
            )
        if self.temperature != 1.0 and self.support != "full":
            raise ValueError(
                f"temperature = {self.temperature:g} scales the logits of every word, and support = "
                f'"{self.support}" has not all of them: use support = "full" or temperature = 1'
            )

    @property
    def needs_drawn(self) -> bool:
        """Whether the loss reads the drawn token, so that rows must be the student's own."""
        return self.support in ("unbiased", "sampled")

    def formula(self, k: int = 0) -> str:
        """In one line. ``k``: words of S."""
        what = _FULL[self.divergence]
        if self.divergence == "jsd":
            what = what.replace("β", f"{self.beta:g}").replace("(1−" + f"{self.beta:g})", f"{1 - self.beta:g} ")
        if self.support == "full":
            scaled = "" if self.temperature == 1.0 else f", logits / {self.temperature:g}"
            return f"{what}{scaled}, v over all shared words"
        if self.support == "tail":
            return f"{what}, v over the teacher's top {k} and one word for the rest"
        weight = f"ρ = min(p_y/μ_y, {self.ratio_cap:g})"
        if self.support == "sampled":
            return f"ρ · sg[log p_y − log q_y] · log p_y of the drawn token y, {weight}: a sampled policy gradient"
        return (
            f"Σ_S sg[p_v(log p_v − log q_v)] log p_v + ρ · 1[y∉S] sg[log p_y − log q_y] log p_y, S = the teacher's "
            f"top {k}, {weight}"
        )


#: Of ``teacher_kl`` on traces, whose rows are the teacher's.
FORWARD = DistillationSpec(divergence="forward")
