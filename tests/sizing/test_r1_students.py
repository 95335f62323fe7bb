"""R1's six students: their recipes' models without numbers, by the parameters of their model cards."""

from __future__ import annotations

import pytest

from rlreason.config import DistillStage, load, locate
from rlreason.config.learning_rates import rate_of
from rlreason.policy.model import fresh_config
from rlreason.sizing.shape import empty_model, shape_of

#: Parameters, and R1's learning rate.
STUDENTS = {
    "qwen_1_5b": (1.5437e9, 1e-4),
    "qwen_7b": (7.62e9, 8e-5),
    "qwen_14b": (14.77e9, 7e-5),
    "qwen_32b": (32.76e9, 6e-5),
    "llama_8b": (8.03e9, 5e-5),
    "llama_70b": (70.55e9, 2e-5),
}


@pytest.mark.parametrize("name", STUDENTS)
def test_the_student_has_its_parameters_and_r1s_rate(name: str) -> None:
    recipe = load(locate(f"r1_distill_{name}"))
    parameters, rate = STUDENTS[name]
    assert recipe.student is not None
    total = shape_of(empty_model(fresh_config(recipe.student))).total
    assert total == pytest.approx(parameters, rel=1e-3)
    stage = recipe.stage[0]
    assert isinstance(stage, DistillStage)
    assert (stage.optimizer.lr, stage.optimizer.final_lr_ratio, stage.batch_size) == ("auto", 0.1, 64)
    assert rate_of(total, recipe.student.model_type).value == rate
