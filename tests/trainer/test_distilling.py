"""The loss with a teacher in it: equal to whole logits, whatever the heads, the packing and where the teacher is."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from rlreason.objective.batch import Batch
from rlreason.objective.distillation.spec import FORWARD, DistillationSpec
from rlreason.policy.attention import ATTENTION
from rlreason.policy.batch import collate, pack
from rlreason.policy.heads import output_head
from rlreason.policy.logprobs import takes_packed
from rlreason.trainer.distilling import DistillationLoss
from rlreason.trainer.protocol import Models
from rlreason.types import TeacherScores, TrainingSample

CPU = torch.device("cpu")
SHAPE: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "head_dim": 16, "intermediate_size": 64, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2,
    "initializer_range": 0.2,
}  # fmt: skip
CAPPED = {"final_logit_softcapping": 5.0, "attn_logit_softcapping": None, "query_pre_attn_scalar": 16}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "tied": ("qwen3", {"tie_word_embeddings": True}),
    "untied": ("llama", {"tie_word_embeddings": False}),
    "soft cap": ("gemma2", CAPPED),
    "scaled": ("granite", {"logits_scaling": 4.0}),
    "biased": ("phi", {}),
}


def model_of(name: str, seed: int = 0, **changed: Any) -> PreTrainedModel:
    family, extra = FAMILIES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = AutoConfig.for_model(family, **{**SHAPE, **extra, **changed})
        model = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION).double()
    head = model.get_output_embeddings()
    if head.bias is not None:
        torch.nn.init.normal_(head.bias, generator=torch.Generator().manual_seed(1))
    return model


def rows(count: int = 4, words: int = 40) -> list[TrainingSample]:
    return [
        TrainingSample(
            token_ids=[*range(3, 6), *((10 + 7 * i * t) % words for t in range(3 + i))],
            loss_mask=[0] * 3 + [1] * (3 + i),
            sampler_logprobs=[0.0] * 3 + [-3.0 - 0.1 * t for t in range(3 + i)],
            weights=[0.0] * 3 + [0.05 + 0.01 * i] * (3 + i),
        )
        for i in range(count)
    ]


def whole_logits(student: PreTrainedModel, teacher: PreTrainedModel, batch: Batch, w: float, n: float) -> Tensor:
    """The loss as it was computed before, from whole logits: (1 − w) CE + w KL(teacher || student)."""
    z, u = student(batch.token_ids_BT).logits, teacher(batch.token_ids_BT).logits.detach()
    logp, logq = z.log_softmax(-1), u.log_softmax(-1)
    entropy = -(logp.gather(-1, batch.targets_BT.unsqueeze(-1)).squeeze(-1) * batch.loss_mask_BT).sum() / n
    kl = ((logq.exp() * (logq - logp)).sum(-1) * batch.loss_mask_BT).sum() / n
    return (1.0 - w) * entropy + w * kl


@pytest.mark.parametrize("w", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("student", "teacher"), [("tied", "untied"), ("untied", "soft cap"), ("soft cap", "tied")])
def test_teacher_kl_is_what_whole_logits_gave(student: str, teacher: str, w: float) -> None:
    ours, theirs = model_of(student), model_of(teacher, seed=5)
    batch = collate(rows(), 0, CPU)
    models = Models(policy=ours, teachers=(theirs,))
    output = DistillationLoss(spec=FORWARD, weight=w, denominator=18.0)(models, batch)
    close = 1e-6 if student == "soft cap" else 1e-12  # whole logits are made in float32
    expected = whole_logits(ours, theirs, batch, w, 18.0)
    assert float((output.loss - expected).detach()) == pytest.approx(0.0, abs=close)
    slopes = torch.autograd.grad(expected, list(ours.parameters()))
    for one, other in zip(torch.autograd.grad(output.loss, list(ours.parameters())), slopes, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=close)
    other = whole_logits(ours, theirs, batch, w + 1e-6, 18.0)
    assert abs(float((other - expected).detach())) > 1e-9  # canary


@pytest.mark.parametrize("name", FAMILIES)
def test_heads_have_names(name: str) -> None:
    model = model_of(name)
    head = output_head(model)
    assert head is not None
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        states = model.base_model(ids).last_hidden_state[0]
        found = head.logits(states, torch.empty(3, 40, dtype=torch.float64))
        assert torch.allclose(found, model(ids).logits[0], atol=1e-12)
        # Canary: before the last norm a head says something else.
        raw = model.base_model(ids, output_hidden_states=True).hidden_states[-2][0]
        wrong = head.logits(raw, torch.empty(3, 40, dtype=torch.float64))
    assert not torch.allclose(wrong, model(ids).logits[0], atol=1e-3)


def test_packed_and_split_micro_batches_add_up_to_the_same() -> None:
    ours, theirs = model_of("tied"), model_of("untied", seed=5)
    assert takes_packed(ours)
    assert takes_packed(theirs)
    models, samples = Models(policy=ours, teachers=(theirs,)), rows()
    for spec in (FORWARD, DistillationSpec()):
        loss = DistillationLoss(spec=spec)
        parameters = list(ours.parameters())

        def slopes(batches: list[Batch], loss: DistillationLoss = loss, parameters: Any = parameters) -> list[Tensor]:
            total = sum(loss(models, one).loss for one in batches)
            return list(torch.autograd.grad(total, parameters))  # type: ignore[arg-type]

        whole = slopes([collate(samples, 0, CPU)])
        for batches in (
            [pack(samples, 0, CPU)],
            [collate(samples[2:], 0, CPU), pack(samples[:2], 0, CPU)],
            [collate(list(reversed(samples)), 0, CPU)],
        ):
            apart = max(float((a - b).abs().max()) for a, b in zip(slopes(batches), whole, strict=True))
            # transformers' norms round to float32 inside: what is 1e-16 apart before them may be 6e-8 apart after.
            assert apart < 1e-6
        # Canary: one completion less is another gradient.
        other = slopes([pack(samples[1:], 0, CPU)])
        assert max(float((a - b).abs().max()) for a, b in zip(other, whole, strict=True)) > 1e-3


def scored(samples: list[TrainingSample], teacher: PreTrainedModel, kind: str, k: int = 40) -> list[TrainingSample]:
    """The samples with what the teacher says of them, as another process would send it."""
    from dataclasses import replace

    found = []
    for one in samples:
        ids = torch.tensor(one.token_ids[None].astype(np.int64))
        with torch.no_grad():
            states = teacher.base_model(ids).last_hidden_state[0, :-1]
            logq = teacher(ids).logits[0, :-1].log_softmax(-1)
        first = np.zeros((1, states.shape[1]))
        if kind == "states":
            said = TeacherScores(states=np.concatenate([first, states.numpy()]))
        else:
            top = logq.topk(k)
            rest = logq.scatter(1, top.indices, -torch.inf).logsumexp(1)
            said = TeacherScores(
                ids=np.concatenate([np.zeros((1, k)), top.indices.numpy()]),
                logprobs=np.concatenate([np.zeros((1, k)), top.values.numpy()]),
                log_tail=np.concatenate([[0.0], rest.numpy()]),
            )
        of_y = logq.gather(1, ids[0, 1:, None])[:, 0].numpy()
        found.append(replace(one, teacher=said, teacher_logprobs=np.concatenate([[0.0], of_y])))
    return found


@pytest.mark.parametrize("make", [collate, pack])
def test_a_teacher_elsewhere_says_what_one_here_says(make: Any) -> None:
    ours, theirs = model_of("tied"), model_of("untied", seed=5)
    head = output_head(theirs)
    assert head is not None
    here = Models(policy=ours, teachers=(theirs,))
    elsewhere = Models(policy=ours, heads=(head,))
    exact = DistillationLoss(spec=DistillationSpec())(here, make(rows(), 0, CPU)).loss
    sent = DistillationLoss(spec=DistillationSpec(), elsewhere=True)(
        elsewhere, make(scored(rows(), theirs, "states"), 0, CPU)
    ).loss
    words = DistillationLoss(spec=DistillationSpec(support="tail"), elsewhere=True)(
        elsewhere, make(scored(rows(), theirs, "words"), 0, CPU)
    ).loss
    assert float((sent - exact).detach()) == pytest.approx(0.0, abs=1e-6)  # states travel in float32
    assert float((words - exact).detach()) == pytest.approx(0.0, abs=1e-5)
    few = DistillationLoss(spec=DistillationSpec(support="tail"), elsewhere=True)(
        elsewhere, make(scored(rows(), theirs, "words", 2), 0, CPU)
    ).loss
    assert 0.0 < float(few.detach()) < float(exact.detach()) - 1e-3


def slopes_of(policy: PreTrainedModel, models: Models, loss: DistillationLoss, batch: Batch) -> float:
    found = torch.autograd.grad(loss(models, batch).loss, list(policy.parameters()))
    return float(sum(one.square().sum() for one in found) ** 0.5)


def test_a_teacher_that_is_the_student_teaches_nothing() -> None:
    """Exactly nothing where both run here; rounding where what it says travels in float32."""
    ours, same, other = model_of("tied"), model_of("tied"), model_of("untied", seed=5)
    batch = collate(rows(), 0, CPU)
    for spec in (FORWARD, DistillationSpec(), DistillationSpec(divergence="jsd", beta=0.3)):
        here = DistillationLoss(spec=spec)
        assert slopes_of(ours, Models(policy=ours, teachers=(same,)), here, batch) < 1e-15
        norm = slopes_of(ours, Models(policy=ours, teachers=(other,)), here, batch)
        assert norm > 1e-3
        head = output_head(same)
        assert head is not None
        sent = DistillationLoss(spec=spec, elsewhere=True)
        states = collate(scored(rows(), same, "states"), 0, CPU)
        assert slopes_of(ours, Models(policy=ours, heads=(head,)), sent, states) <= 1e-6 * norm
        words = collate(scored(rows(), same, "words", 8), 0, CPU)
        cut = replace(sent, spec=replace(spec, support="tail"))
        assert slopes_of(ours, Models(policy=ours), cut, words) <= 1e-6 * norm
        # Canary: one ten-thousandth of noise on the teacher's head.
        bent = copy.deepcopy(same)
        with torch.no_grad():
            bent.get_output_embeddings().weight.mul_(1.0001)
        assert slopes_of(ours, Models(policy=ours, teachers=(bent,)), here, batch) > 1e-6 * norm


@pytest.mark.parametrize("divergence", ["reverse", "forward"])
def test_a_student_that_was_moved_away_comes_back(divergence: Any) -> None:
    """Its teacher with noise on all weights: in 50 steps the divergence falls to less than a tenth."""
    teacher = model_of("tied").requires_grad_(requires_grad=False)
    student = copy.deepcopy(teacher).requires_grad_()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for one in student.parameters():
            one.add_(0.03 * torch.randn(one.shape, generator=generator, dtype=one.dtype))
    batch, loss = collate(rows(6), 0, CPU), DistillationLoss(spec=DistillationSpec(divergence=divergence))
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3, weight_decay=0.0)
    seen = []
    for _ in range(50):
        output = loss(Models(policy=student, teachers=(teacher,)), batch)
        seen.append(float(output.loss.detach()))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    assert 0 < seen[-1] < seen[0] / 10
