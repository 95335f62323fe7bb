"""Which implementation runs where no GPU is. What the kernels compute: test_kernels.py."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Iterator

import pytest
import torch

from rlreason.objective import dispatch, linear, loss, scores
from rlreason.objective.presets import PRESETS

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    dispatch._triton_installed.cache_clear()
    yield
    dispatch._triton_installed.cache_clear()


def test_the_torch_path_runs_on_the_cpu_with_triton_or_without(monkeypatch: pytest.MonkeyPatch) -> None:
    for found in (None, object()):
        monkeypatch.setattr(dispatch, "find_spec", lambda name, found=found: found)
        assert not dispatch.uses_triton(CPU)


def test_a_gpu_without_triton_warns_once_and_runs_the_torch_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "find_spec", lambda name: None)
    with pytest.warns(RuntimeWarning, match="Triton is not installed"):
        assert not dispatch.uses_triton(CUDA)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not dispatch.uses_triton(CUDA)


def test_a_gpu_with_triton_runs_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "find_spec", lambda name: object())
    assert dispatch.uses_triton(CUDA)


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("step_advantages", scores),
        ("evaluate", loss),
        ("policy_loss", loss),
        ("linear_policy_loss", linear),
        ("linear_supervised_loss", linear),
        ("linear_logprobs", linear),
    ],
)
def test_arguments_and_results_pass_as_they_are(name: str, module: object, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[object, ...]] = []
    monkeypatch.setattr(module, name, lambda *arguments: seen.append(arguments) or "result")
    given: tuple[object, ...] = (torch.zeros(1), "second", "third", PRESETS["dapo"], "fifth", "sixth", "seventh")
    if name == "step_advantages":
        given = ("scores", CPU, torch.float64)
    count = {
        "evaluate": 3,
        "step_advantages": 3,
        "policy_loss": 5,
        "linear_policy_loss": 7,
        "linear_supervised_loss": 5,
    }.get(name, 4)
    assert getattr(dispatch, name)(*given[:count]) == "result"
    assert seen == [given[:count]]


def test_triton_is_not_imported_on_the_cpu() -> None:
    code = (
        "import sys, torch\n"
        "from rlreason.objective import dispatch\n"
        "from rlreason.objective.spec import ObjectiveSpec\n"
        "from rlreason.objective.loss import LossInputs\n"
        "from rlreason.objective.scores import StepScores\n"
        "one = torch.ones(2, 2)\n"
        "tokens = LossInputs(mask_BT=one, sampler_logprobs_BT=one, advantages_BT=one, weights_BT=one)\n"
        "dispatch.evaluate(one, tokens, ObjectiveSpec())\n"
        "step = StepScores(spec=ObjectiveSpec(), max_tokens=2, scores_N=one[0].double(), sizes_G=(2,), "
        "lengths_N=one[0].long(), truncated_N=one[0] > 1)\n"
        "dispatch.step_advantages(step, one.device)\n"
        "assert 'rlreason.objective.kernels' not in sys.modules\n"
        "assert 'triton' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
