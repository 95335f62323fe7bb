"""`rlreason eval`: models and runs on held-out problems, by the code that a run's eval stages use, and compared.

Three ways in, one way through: a run's own held-out problems, other data with the run's prompts, or any model. Each
becomes a recipe with an eval stage (``plan``), and ``stages.evaluate.measure`` does the rest (``run``). Models that
were measured are compared problem by problem (``against``) and put on one page (``page``).
"""

from rlreason.evaluation.request import EvalRequest
from rlreason.evaluation.run import Measured, evaluate_model, evaluate_models

__all__ = ["EvalRequest", "Measured", "evaluate_model", "evaluate_models"]
