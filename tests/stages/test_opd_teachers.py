"""What an opd stage watches its teachers for: answers of other places, noise, and words that the other has not."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from rlreason.config import PolicyConfig
from rlreason.errors import HealthStop, UsageError
from rlreason.policy.policies import PolicySource, fresh_tokenizer
from rlreason.stages import distill
from rlreason.stages.opd import OpdWork
from rlreason.stages.opd_teachers import Teacher, check_noise, check_places, with_finite
from rlreason.trainer import teachers
from rlreason.trainer.options import ModelSource
from rlreason.trainer.teachers import TeacherScorer, TeacherSpec
from rlreason.types import TeacherScores, TrainingSample

CPU = torch.device("cpu")
SHAPE = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
    "intermediate_size": 64, "max_position_embeddings": 128, "initializer_range": 0.5,
}  # fmt: skip


def source(seed: int = 0) -> PolicySource:
    config = PolicyConfig(model_type="qwen3", model=SHAPE)
    return PolicySource(config=config, tokenizer=fresh_tokenizer(config, "0123456789", ()), seed=seed)


def scorer(payload: Any = "topk", k: int = 4, tokens: int = 64) -> TeacherScorer:
    model = ModelSource(source=source(), dtype=torch.float32)
    return TeacherScorer(TeacherSpec(model=model, payload=payload, k=k, shared=17, micro_batch_tokens=tokens), CPU)


def rows(count: int = 4) -> list[TrainingSample]:
    random = np.random.default_rng(3)
    return [
        TrainingSample(
            token_ids=random.integers(3, 13, 9 + 4 * place),
            loss_mask=np.arange(9 + 4 * place) >= 4,
            sampler_logprobs=-2.0,
        )
        for place in range(count)
    ]


def taught(elsewhere: Any) -> Teacher:
    return Teacher(name="big", place=0, shared=17, elsewhere=elsewhere)


@pytest.mark.parametrize("tokens", [16, 4096])
def test_each_token_is_scored_by_the_place_before_it(tokens: int) -> None:
    """The first of a response by the last of its prompt, the end token too; nothing of the prompt."""
    policy, samples = source().load(torch.float32, CPU), rows()
    for sample, scored in zip(samples, scorer(tokens=tokens).score(samples), strict=True):
        with torch.no_grad():
            logits = policy.model(torch.tensor(sample.token_ids[None].astype(np.int64))).logits[0, :, :17]
        expected = logits.double().log_softmax(-1)[:-1].gather(1, torch.tensor(sample.token_ids[1:, None]).long())
        mask = sample.loss_mask
        assert mask[-1]
        assert scored.teacher_logprobs is not None
        assert np.allclose(scored.teacher_logprobs[mask], expected[:, 0].numpy()[mask[1:]], atol=1e-5)
        assert not scored.teacher_logprobs[~mask].any()
        late = np.roll(scored.teacher_logprobs, 1)
        assert not np.allclose(late[mask], expected[:, 0].numpy()[mask[1:]], atol=1e-2)  # canary


@pytest.mark.parametrize("payload", ["topk", "hidden", "sampled"])
def test_answers_of_other_places_stop_the_run(payload: str, monkeypatch: pytest.MonkeyPatch) -> None:

    def check() -> None:
        one = scorer(payload)
        check_places(taught(one), one.head(), [3, 4, 5, 6], 16, "opd")

    check()
    of_tokens = teachers._of_tokens
    for shift in (-1, 1):

        def shifted(values: npt.NDArray[Any], sample: TrainingSample, *, whole: bool, by: int = shift) -> Any:
            return np.roll(of_tokens(values, sample, whole=whole), by, axis=0)

        monkeypatch.setattr(teachers, "_of_tokens", shifted)
        if payload == "sampled":  # it names no words: nothing can be said
            check()
            continue
        with pytest.raises(HealthStop, match=r"'opd': what the teacher 'big' says is of other places: .* in \d+%"):
            check()


class Noisy:
    """A teacher whose answers depend on what else is in the batch."""

    def __init__(self, noise: float) -> None:
        self._scorer, self._noise = scorer("sampled"), noise

    def score(self, samples: list[TrainingSample]) -> list[TrainingSample]:
        found = self._scorer.score(samples)
        off = np.float32(self._noise * (len(samples) > 1))
        return [replace(one, teacher_logprobs=one.teacher_logprobs + off) for one in found]


def test_a_teacher_that_disagrees_with_itself_stops_the_run() -> None:
    (first, *_) = rows()
    (alone,) = scorer("sampled").score([first])
    assert alone.teacher_logprobs is not None
    signal = float(np.abs(alone.teacher_logprobs + 2.0)[first.loss_mask].mean())
    check_noise(taught(Noisy(0.29 * signal)), rows(), "opd")
    with pytest.raises(HealthStop, match=r"'big' scores the same row .* nats a token apart.* its signal is noise"):
        check_noise(taught(Noisy(0.31 * signal)), rows(), "opd")


def checked(
    scalars: dict[str, float], excluded: float = 0.0, elsewhere: bool = True, floor: float | None = None
) -> None:
    stage, one = SimpleNamespace(name="opd", floor=floor), SimpleNamespace(elsewhere=object() if elsewhere else None)
    OpdWork._check(SimpleNamespace(stage=stage, teachers=(one,)), scalars, excluded, 10_000.0)  # type: ignore[arg-type]


def test_what_stops_a_step_before_the_weights_change() -> None:
    checked({"excluded/teacher_not_finite": 0.0009, "padded_mass/student": 0.009}, excluded=0.0)
    checked({}, excluded=9.0)
    with pytest.raises(HealthStop, match=r"0\.11% of the tokens have no finite divergence.*floor = -40"):
        checked({}, excluded=11.0)
    with pytest.raises(HealthStop, match="no finite divergence"):
        checked({"excluded/teacher_not_finite": 0.0011})
    with pytest.raises(HealthStop, match="no finite divergence"):  # beside the student nothing is left out
        checked({"excluded/no_finite_divergence": 0.0001}, elsewhere=False)
    with pytest.raises(HealthStop, match="which no floor mends") as caught:  # it has one already
        checked({}, excluded=11.0, floor=-40.0)
    assert "say floor" not in str(caught.value)
    for who in ("student", "teacher"):
        with pytest.raises(HealthStop, match=rf"the {who} gives 2\.0% of its probability to ids that the other"):
            checked({f"padded_mass/{who}": 0.02})


def test_tokens_without_an_answer_carry_no_loss_and_are_counted() -> None:
    (one, *_) = rows()
    count = len(one.token_ids)
    logprobs, words = np.zeros(count, np.float32), np.zeros((count, 2), np.float32)
    logprobs[5], words[6, 1] = -np.inf, np.nan
    logprobs[0] = np.nan  # of the prompt: nobody asks
    said = TeacherScores(ids=np.zeros((count, 2)), logprobs=words, log_tail=np.zeros(count))
    found, left_out = with_finite(replace(one, teacher_logprobs=logprobs, teacher=said))
    assert left_out == 2
    assert np.flatnonzero(one.loss_mask & ~found.loss_mask).tolist() == [5, 6]
    found, left_out = with_finite(replace(one, teacher_logprobs=logprobs, teacher=said), floor=-40.0)
    assert left_out == 1  # probability 0 has a log now, NaN has none
    assert np.flatnonzero(one.loss_mask & ~found.loss_mask).tolist() == [6]


def test_traces_without_a_token_to_learn_from_are_refused(tmp_path: Any) -> None:
    """trl #2217: the loss was 0 and nobody noticed."""
    (tmp_path / "traces.jsonl").write_text(
        '{"problem_id": "p", "prompt": "1+1=", "messages": [], "response": "2"}\n', encoding="utf-8"
    )
    row = SimpleNamespace(token_ids=[1, 2, 3], loss_mask=[0, 0, 0])
    masked = SimpleNamespace(supervised=lambda *_, **__: row)
    context: Any = SimpleNamespace(prompt_format=masked)
    student: Any = SimpleNamespace(architecture={}, tokenizer=None)
    with pytest.raises(
        UsageError, match=r"'opd': no token of the traces in .* carries loss: the student's chat template"
    ):
        distill.trace_samples(SimpleNamespace(name="opd"), context, student, tmp_path)  # type: ignore[arg-type]
