"""``lr = "auto"``: the learning rate of supervised training by the size of the student, from DeepSeek-R1's table.

Nature 645, 633-638, supplement: six students, each trained on the same 800k rows for two to three epochs, cosine to a
tenth. Six points, so size and family can't be told apart; between them the bounds are ours.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Example: ``Rate(value=8e-5, source="Qwen2.5-Math-7B")``."""

    value: float
    #: The student that R1 trained at it.
    source: str

    @property
    def said(self) -> str:
        """Where it is from, for `rlreason plan`."""
        return f"DeepSeek-R1's for {self.source} (Nature 645, supplement: supervised students by size)"


#: Models below so many parameters: the rate of Qwen's family, and of others.
TABLE = (
    (4e9, Rate(value=1e-4, source="Qwen2.5-Math-1.5B"), Rate(value=1e-4, source="Qwen2.5-Math-1.5B")),
    (10e9, Rate(value=8e-5, source="Qwen2.5-Math-7B"), Rate(value=5e-5, source="Llama-3.1-8B")),
    (20e9, Rate(value=7e-5, source="Qwen2.5-14B"), Rate(value=7e-5, source="Qwen2.5-14B")),
    (50e9, Rate(value=6e-5, source="Qwen2.5-32B"), Rate(value=6e-5, source="Qwen2.5-32B")),
)
LARGEST = Rate(value=2e-5, source="Llama-3.3-70B-Instruct")
#: R1's smallest student; for much smaller models its rate is lower than they need.
SMALLEST = 1.5e9


def rate_of(parameters: float, model_type: str) -> Rate:
    """R1's rate for a student of so many parameters; ``model_type`` is transformers' name of its architecture."""
    for below, qwen, other in TABLE:
        if parameters < below:
            return qwen if model_type.startswith("qwen") else other
    return LARGEST
