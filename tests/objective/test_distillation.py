"""Divergences from a teacher: closed forms against a float64 oracle, expectations by enumeration, invariances."""

from __future__ import annotations

import math
import subprocess
import sys
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from distillation_oracle import divergence, gradient, grouped, pairs
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from rlreason.objective.batch import LossOutput
from rlreason.objective.distillation import divergence as closed
from rlreason.objective.distillation.divergence import Drawn
from rlreason.objective.distillation.head import DistillationOptions, RowWeights, StudentRows, distillation_loss
from rlreason.objective.distillation.spec import DistillationSpec
from rlreason.objective.distillation.teacher import OutputHead, TeacherRows

NAMES = [("forward", 0.5), ("reverse", 0.5), ("jsd", 0.5), ("jsd", 0.1)]
ROWS, WORDS = 24, 12


def spec_of(name: str, beta: float = 0.5, **changed: object) -> DistillationSpec:
    return DistillationSpec(divergence=name, beta=beta, **changed)  # type: ignore[arg-type]


def top(u: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """(ids, log q, log of the rest) of the teacher's k most probable words."""
    logq = u.log_softmax(1)
    ids = u.topk(k, dim=1).indices
    return ids, logq.gather(1, ids), logq.scatter(1, ids, -math.inf).logsumexp(1)


def drawn(u: Tensor, y: Tensor, ratio: float = 1.0) -> Drawn:
    return Drawn(
        ids_R=y,
        logq_R=u.log_softmax(1).gather(1, y.unsqueeze(1)).squeeze(1),
        ratio_R=torch.full((len(y),), ratio, dtype=torch.float64),
    )


# 1: p = q


@pytest.mark.parametrize(("name", "beta"), NAMES)
def test_nothing_to_learn_from_oneself(name: str, beta: float) -> None:
    z, _ = pairs(ROWS, WORDS)
    for u in (z, z + 7.0):
        logp, logq = z.log_softmax(1), u.log_softmax(1)
        full = closed.between(logp, logq, spec_of(name, beta))
        assert max(float(full.value_R.abs().max()), float(full.gradient_RV.abs().max())) < 1e-12
        for k in (1, 2, 8, WORDS - 1, WORDS):
            tail = closed.with_tail(z, *top(u, k), spec_of(name, beta))
            assert max(float(tail.value_R.abs().max()), float(tail.gradient_RV.abs().max())) < 1e-12
            ids, logq_K, _ = top(u, k)
            for word in range(WORDS):
                y = torch.full((ROWS,), word)
                assert float(closed.unbiased(z, ids, logq_K, drawn(u, y)).gradient_RV.abs().max()) < 1e-12
    # Canary: a sum over S alone, without the tail, has a gradient at p = q.
    ids = z.topk(4, dim=1).indices
    leaf = z.clone().requires_grad_()
    p = leaf.softmax(1).gather(1, ids)
    cut = (p * (p.log() - p.detach().log())).sum()
    assert float(torch.autograd.grad(cut, leaf)[0].abs().max()) > 1e-3


# 2: closed gradients


@pytest.mark.parametrize(("name", "beta"), NAMES)
def test_values_and_gradients_are_the_oracles(name: str, beta: float) -> None:
    z, u = pairs(ROWS, WORDS)
    value, slope = gradient(z, u.softmax(1), name, beta)
    found = closed.between(z.log_softmax(1), u.log_softmax(1), spec_of(name, beta))
    assert torch.allclose(found.value_R, value, rtol=1e-12, atol=1e-12)
    assert torch.allclose(found.gradient_RV, slope, rtol=0, atol=1e-12)
    nobody = torch.full((ROWS, 1), -math.inf, dtype=torch.float64)  # a word that neither has changes nothing
    wider = [torch.cat([one, nobody], dim=1).log_softmax(1) for one in (z, u)]
    same = closed.between(wider[0], wider[1], spec_of(name, beta))
    assert torch.allclose(same.value_R, value, rtol=1e-12, atol=1e-12)
    assert torch.allclose(same.gradient_RV[:, :-1], slope, rtol=0, atol=1e-12)
    for k in (1, 4, WORDS - 1, WORDS):
        finite_z, finite_u = pairs(ROWS, WORDS, seed=1)
        ids, logq, tail = top(finite_u, k)
        value, slope = gradient(finite_z, finite_u.softmax(1), name, beta, ids if k < WORDS else None)
        found = closed.with_tail(finite_z, ids, logq, tail, spec_of(name, beta))
        assert torch.allclose(found.value_R, value, rtol=1e-9, atol=1e-12)
        assert torch.allclose(found.gradient_RV, slope, rtol=0, atol=1e-9 if k < WORDS else 1e-12)
    wrong, _ = gradient(z, u.softmax(1), "reverse" if name != "reverse" else "forward")
    assert not torch.allclose(same.value_R, wrong, atol=1e-3)  # canary


def test_finite_differences() -> None:
    z, u = pairs(6, 7, seed=3)
    z, u = z / 5, u / 5
    for name, beta in NAMES:
        found = closed.between(z.log_softmax(1), u.log_softmax(1), spec_of(name, beta)).gradient_RV
        step = 1e-6
        for word in range(7):
            moved = torch.zeros_like(z)
            moved[:, word] = step
            up, down = (
                closed.between((z + one).log_softmax(1), u.log_softmax(1), spec_of(name, beta)).value_R
                for one in (moved, -moved)
            )
            assert torch.allclose((up - down) / (2 * step), found[:, word], atol=1e-7)


# 3, 4: signs and bounds


def test_never_negative_and_the_tail_is_a_bound() -> None:
    z, u = pairs(10_000, 8, seed=5)
    for name, beta in NAMES:
        full = closed.between(z.log_softmax(1), u.log_softmax(1), spec_of(name, beta)).value_R
        assert float(full.min()) >= -1e-12
        before = torch.zeros_like(full)
        for k in (1, 2, 4, 7, 8):
            bound = closed.with_tail(z, *top(u, k), spec_of(name, beta)).value_R
            assert float(bound.min()) >= -1e-12
            assert float((bound - full).max()) < 1e-9 * max(1.0, float(full.max()))
            assert float((before - bound).max()) < 1e-9 * max(1.0, float(full.max()))  # nested supports grow
            before = bound
        assert torch.allclose(before, full, rtol=1e-9, atol=1e-10)
        assert torch.allclose(bound, full, rtol=1e-9, atol=1e-10)  # k = V: the tail is empty, and no NaN comes of it
    # canary: the sum over the teacher's words without the rest is negative, above the whole, and not monotone
    z, u = pairs(10_000, 8, seed=5)
    logp, logq, full = z.log_softmax(1), u.log_softmax(1), closed.between(z, u, spec_of("reverse")).value_R
    sums = [(logp.exp() * (logp - logq)).gather(1, u.topk(k, dim=1).indices).sum(1) for k in (1, 2, 4)]
    assert min(float(one.min()) for one in sums) < -0.1
    assert max(float((one - full).max()) for one in sums) > 0.1
    assert float((sums[1] - sums[2]).max()) > 0.1


#: What hides that an estimate is no divergence.
CUTS = ("clamp", "relu", "clip(")


def test_no_cutting_in_the_divergences() -> None:
    text = Path(closed.__file__).read_text()
    assert not any(one in text for one in CUTS)
    assert any(one in text + "value_R.clamp_(min=0.0)" for one in CUTS)  # canary


# 5: which direction is which


def test_directions_by_hand() -> None:
    z, u = (torch.tensor([one], dtype=torch.float64).log() for one in ([0.99, 0.01], [0.5, 0.5]))
    found = closed.between(z, u, spec_of("reverse"))
    assert float(found.value_R) == pytest.approx(0.99 * math.log(1.98) + 0.01 * math.log(0.02), abs=1e-12)
    assert float(found.value_R) == pytest.approx(0.6371, abs=1e-4)
    assert float(closed.between(z, u, spec_of("forward")).value_R) == pytest.approx(1.6145, abs=1e-4)


def test_forward_by_hand() -> None:
    """Teacher (½, ½), student (¼, ¾): ½ ln 2 + ½ ln ⅔."""
    z, u = (torch.tensor([one], dtype=torch.float64).log() for one in ([0.25, 0.75], [0.5, 0.5]))
    found = float(closed.between(z, u, spec_of("forward")).value_R)
    assert found == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3), abs=1e-14)


def test_reverse_sits_on_a_mode_and_forward_spans_both() -> None:
    """A teacher with two modes, and a student that can only be one bump."""
    places = torch.arange(41).double()
    q = (-((places - 8) ** 2) / 18).exp() + (-((places - 32) ** 2) / 18).exp()
    found = {}
    for name in ("forward", "reverse"):
        mean, log_width = (torch.tensor(one, dtype=torch.float64, requires_grad=True) for one in (28.0, 1.5))
        optimizer = torch.optim.Adam([mean, log_width], lr=0.2)
        for _ in range(200):
            z = (-((places - mean) ** 2) / (2 * (2 * log_width).exp())).unsqueeze(0)
            rows = closed.between(z.detach().log_softmax(1), (q / q.sum()).log().unsqueeze(0), spec_of(name))
            optimizer.zero_grad()
            z.backward(rows.gradient_RV)
            optimizer.step()
        found[name] = (float(mean.detach()), float(log_width.detach().exp()))
    assert abs(found["reverse"][0] - 32) < 1.0
    assert found["reverse"][1] < 5.0
    assert 16 < found["forward"][0] < 27
    assert found["forward"][1] > 9.0


# 6: expectations over the drawn token


def test_expected_gradients_by_enumeration() -> None:
    z, u = pairs(9, 10, seed=7)
    z, u = z / 4, u / 4
    p, logp, logq = z.softmax(1), z.log_softmax(1), u.log_softmax(1)
    _, reverse = gradient(z, u.softmax(1), "reverse")
    _, forward = gradient(z, u.softmax(1), "forward")
    everyone = [torch.full((len(z),), word) for word in range(10)]

    def expected(of: object) -> Tensor:
        return sum(p[:, one[0]].unsqueeze(1) * of(one) for one in everyone)  # type: ignore[operator,return-value,misc]

    sampled = expected(lambda y: closed.sampled(z, drawn(u, y)).gradient_RV)
    assert torch.allclose(sampled, reverse, rtol=0, atol=1e-14)
    for whose in (u, z):  # the teacher's words, the student's
        ids = whose.topk(3, dim=1).indices
        found = expected(lambda y, ids=ids: closed.unbiased(z, ids, logq.gather(1, ids), drawn(u, y)).gradient_RV)
        assert torch.allclose(found, reverse, rtol=0, atol=1e-14)

    def with_drawn(y: Tensor) -> Tensor:
        """The drawn token put into S by force, in place of the last of three."""
        ids = u.topk(3, dim=1).indices
        inside = (ids == y.unsqueeze(1)).any(1, keepdim=True)
        ids = torch.where(inside, ids, torch.cat([ids[:, :2], y.unsqueeze(1)], dim=1))
        return closed.unbiased(z, ids, logq.gather(1, ids), drawn(u, y)).gradient_RV

    assert float((expected(with_drawn) - reverse).abs().max()) > 1e-2

    def direct(value: object) -> Tensor:
        """Expected gradient of an estimate of the KL used as the loss itself."""

        def of(y: Tensor) -> Tensor:
            leaf = z.clone().requires_grad_()
            chosen = leaf.log_softmax(1).gather(1, y.unsqueeze(1)).squeeze(1)
            ratio = chosen - logq.gather(1, y.unsqueeze(1)).squeeze(1)
            return torch.autograd.grad(value(ratio).sum(), leaf)[0]  # type: ignore[operator]

        return expected(of)

    assert torch.allclose(direct(lambda r: (-r).exp() + r - 1), forward, atol=1e-13)  # k3 descends the forward KL
    assert torch.allclose(direct(lambda r: r**2 / 2), reverse, atol=1e-13)
    assert float(direct(lambda r: r).abs().max()) < 1e-13
    score = expected(lambda y: torch.nn.functional.one_hot(y, 10).double() - p)
    assert float(score.abs().max()) < 1e-13  # an advantage that does not depend on y teaches nothing
    assert float((logp - logq).abs().max()) > 0.1


# 8 to 11: the head


def head_case(rows: int = 9, hidden: int = 6, words: int = WORDS, wide: int = WORDS) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(11)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "hidden": random(rows, hidden).requires_grad_(), "weight": random(words, hidden).requires_grad_(),
        "states": random(rows, 4), "head": random(wide, 4), "w": random(rows).abs(), "c": random(rows).abs(),
        "y": torch.randint(0, min(words, wide), (rows,), generator=generator),
        "mu": -random(rows).abs(), "extra": random(4),
    }  # fmt: skip


def run_head(
    case: dict[str, Tensor],
    spec: DistillationSpec,
    teacher: TeacherRows | None = None,
    chunk: int = 1024,
    shared: int | None = None,
    cross: bool = False,
) -> tuple[LossOutput, list[Tensor]]:
    student = StudentRows(
        hidden_RH=case["hidden"], weight_VH=case["weight"], targets_R=case["y"], sampler_logprobs_R=case["mu"]
    )
    teacher = teacher or TeacherRows(head=OutputHead(weight_VH=case["head"]), hidden_RH=case["states"])
    weights = RowWeights(divergence_R=case["w"], cross_entropy_R=case["c"] if cross else None)
    output = distillation_loss(student, teacher, weights, DistillationOptions(spec=spec, chunk=chunk, shared=shared))
    return output, list(torch.autograd.grad(output.loss, [case["hidden"], case["weight"]]))


def teacher_of(case: dict[str, Tensor], kind: str, k: int = 4) -> TeacherRows:
    u = case["states"] @ case["head"].t()
    if kind == "logits":
        return TeacherRows(logits_RV=u)
    ids, logq, tail = top(u, k)
    of_y = u.log_softmax(1).gather(1, case["y"].unsqueeze(1)).squeeze(1)
    return TeacherRows(ids_RK=ids, logq_RK=logq, log_tail_R=tail, logq_y_R=of_y)


@pytest.mark.parametrize("support", ["full", "tail", "unbiased", "sampled"])
@pytest.mark.parametrize(("name", "beta"), NAMES)
def test_the_head_is_the_oracle_in_any_chunks(name: str, beta: float, support: str) -> None:
    if support in ("unbiased", "sampled") and name != "reverse":
        return
    case, spec = head_case(), spec_of(name, beta, support=support)
    teacher = None if support == "full" else teacher_of(case, "words")
    first, slopes = run_head(case, spec, teacher, cross=True)
    u = case["states"] @ case["head"].t()
    z = case["hidden"] @ case["weight"].t()
    logp, logq = z.log_softmax(1), u.log_softmax(1)
    of_y = logp.gather(1, case["y"].unsqueeze(1)).squeeze(1)
    gap = (of_y - logq.gather(1, case["y"].unsqueeze(1)).squeeze(1)).detach()
    ratio = torch.minimum((of_y.detach() - case["mu"]).exp(), torch.tensor(2.0, dtype=torch.float64))
    ids = u.topk(4, dim=1).indices
    if support == "full":
        term = divergence(logp.exp(), logq.exp(), name, beta)
    elif support == "tail":
        term = divergence(grouped(logp.exp(), ids), grouped(logq.exp(), ids), name, beta)
    else:
        cost = ratio * gap
        outside = ~(ids == case["y"].unsqueeze(1)).any(1)
        term = cost * of_y if support == "sampled" else cost * outside * of_y
        if support == "unbiased":
            fixed = (logp.exp() * (logp - logq)).detach().gather(1, ids)
            term = term + (fixed * logp.gather(1, ids)).sum(1)
    loss = (case["w"] * term - case["c"] * of_y).sum()
    expected = torch.autograd.grad(loss, [case["hidden"], case["weight"]])
    for chunk in (1, 2, 7, 1024):
        output, found = run_head(case, spec, teacher, chunk, cross=True)
        if not spec.needs_drawn:
            assert float(output.loss.detach()) == pytest.approx(float(loss.detach()), abs=1e-12)
        for one, other, same in zip(found, expected, slopes, strict=True):
            assert torch.allclose(one, other, rtol=0, atol=1e-12)
            assert torch.allclose(one, same, rtol=0, atol=1e-13)
    assert float(first.sums["loss"]) == pytest.approx(float(-of_y.detach().sum()), abs=1e-12)
    bent = dict(case, w=case["w"] * 1.001)
    assert not torch.allclose(run_head(bent, spec, teacher, cross=True)[1][0], expected[0], atol=1e-8)  # canary


def test_payloads_say_the_same() -> None:
    """Hidden states, whole logits and all words are one distribution; a head without its extras is another."""
    case = head_case()
    exact = run_head(case, spec_of("reverse"))
    for teacher, spec in (
        (teacher_of(case, "logits"), spec_of("reverse")),
        (teacher_of(case, "words", WORDS), spec_of("reverse", support="tail")),
    ):
        output, slopes = run_head(case, spec, teacher)
        assert float((output.loss - exact[0].loss).detach()) == pytest.approx(0.0, abs=1e-12)
        assert all(torch.allclose(one, other, atol=1e-12) for one, other in zip(slopes, exact[1], strict=True))
    bias = torch.linspace(-1, 1, WORDS, dtype=torch.float64)
    head = OutputHead(weight_VH=case["head"], bias_V=bias, scale=0.5, soft_cap=2.0)
    logits = 2.0 * torch.tanh(0.5 * (case["states"] @ case["head"].t() + bias) / 2.0)
    ours = run_head(case, spec_of("forward"), TeacherRows(head=head, hidden_RH=case["states"]))[0].loss
    theirs = run_head(case, spec_of("forward"), TeacherRows(logits_RV=logits))[0].loss
    assert float((ours - theirs).detach()) == pytest.approx(0.0, abs=1e-12)
    assert abs(float((ours - run_head(case, spec_of("forward"))[0].loss).detach())) > 1e-3


def test_widths_and_padded_columns() -> None:
    """A student of 40 columns and a teacher of 48 that share 32: both cut to 32, and padding can't change it."""
    case = head_case(words=40, wide=48)
    case["y"] = case["y"] % 32
    cut = dict(case, weight=case["weight"].detach()[:32].requires_grad_(), head=case["head"][:32])
    expected = run_head(cut, spec_of("reverse"))
    output, (states, weight) = run_head(case, spec_of("reverse"), shared=32)
    assert float((output.loss - expected[0].loss).detach()) == pytest.approx(0.0, abs=1e-12)
    assert torch.allclose(states, expected[1][0], atol=1e-12)
    assert torch.allclose(weight[:32], expected[1][1], atol=1e-12)
    assert float(weight[32:].abs().max()) == 0.0
    u = case["states"] @ case["head"].t()
    loud = u.clone()
    loud[:, 32:] = 1e4
    for logits, mass in ((u, None), (loud, 9.0)):
        found, _ = run_head(case, spec_of("reverse"), TeacherRows(logits_RV=logits), shared=32)
        assert float((found.loss - output.loss).detach()) == pytest.approx(0.0, abs=1e-12)
        if mass is not None:
            assert float(found.sums["padded_mass/teacher"]) == pytest.approx(mass)


def test_temperature_scales_both() -> None:
    case = head_case()
    found, slopes = run_head(case, spec_of("forward", temperature=2.0))
    z = case["hidden"] @ case["weight"].t() / 2.0
    term = divergence(z.softmax(1), (case["states"] @ case["head"].t() / 2.0).softmax(1), "forward")
    loss = (case["w"] * term).sum()
    assert float((found.loss - loss).detach()) == pytest.approx(0.0, abs=1e-12)
    expected = torch.autograd.grad(loss, [case["hidden"], case["weight"]], retain_graph=True)
    assert all(torch.allclose(one, other, atol=1e-12) for one, other in zip(slopes, expected, strict=True))
    # canary: of the student alone it is another loss, and another gradient
    one_sided = divergence(z.softmax(1), (case["states"] @ case["head"].t()).softmax(1), "forward")
    other = (case["w"] * one_sided).sum()
    assert abs(float((found.loss - other).detach())) > 1e-3
    assert not torch.allclose(slopes[0], torch.autograd.grad(other, case["hidden"])[0], atol=1e-4)


# 12, 13: bad teachers, old weights


def test_rows_without_a_finite_answer_are_left_out_and_counted() -> None:
    case = head_case()
    u = (case["states"] @ case["head"].t()).clone()
    u[1, 3], u[2, 0], u[5, 4] = math.nan, math.inf, -math.inf
    found, slopes = run_head(case, spec_of("reverse"), TeacherRows(logits_RV=u))
    kept = dict(case, w=case["w"].clone())
    kept["w"][[1, 2, 5]] = 0.0
    clean = u.nan_to_num(0.0, 0.0, 0.0)
    expected, theirs = run_head(kept, spec_of("reverse"), TeacherRows(logits_RV=clean))
    assert float((found.loss - expected.loss).detach()) == pytest.approx(0.0, abs=1e-12)
    assert all(torch.allclose(one, other, atol=1e-12) for one, other in zip(slopes, theirs, strict=True))
    assert float(found.sums["excluded/teacher_not_finite"]) == 2.0
    assert float(found.sums["excluded/no_finite_divergence"]) == 1.0
    floored, _ = run_head(case, spec_of("reverse", floor=-40.0), TeacherRows(logits_RV=u))
    assert float(floored.sums["excluded/no_finite_divergence"]) == 0.0


@pytest.mark.parametrize("support", ["full", "tail", "unbiased", "sampled"])
def test_a_floor_makes_every_support_finite(support: str) -> None:
    """Student (1/2, 1/4, 1/4), teacher (1/2, 1/2, 0), drawn word 2, S the two others: by hand with log q_2 = -8.

    All words, and S with the rest (which is word 2): 1/4 log(1/2) + 1/4 (log(1/4) + 8). Unbiased: the first term, and
    log(1/4) + 8 of the drawn word. Sampled: that alone.
    """
    q = torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64).log()
    student = StudentRows(
        targets_R=torch.tensor([2]),
        sampler_logprobs_R=torch.tensor([0.25], dtype=torch.float64).log(),
        logits_RV=torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64).log().requires_grad_(),
    )
    words = TeacherRows(ids_RK=torch.tensor([[0, 1]]), logq_RK=q[:, :2], log_tail_R=q[:, 2], logq_y_R=q[:, 2])
    teacher = TeacherRows(logits_RV=q) if support == "full" else words
    weights = RowWeights(divergence_R=torch.ones(1, dtype=torch.float64))

    def found(floor: float | None) -> LossOutput:
        options = DistillationOptions(spec=spec_of("reverse", support=support, floor=floor))
        return distillation_loss(student, teacher, weights, options)

    first, drawn_word = 0.25 * math.log(0.5), math.log(0.25) + 8
    expected = {"unbiased": first + drawn_word, "sampled": drawn_word}.get(support, first + 0.25 * drawn_word)
    floored = found(-8.0)
    assert float(floored.loss.detach()) == pytest.approx(expected, abs=1e-12)
    assert sum(float(value) for key, value in floored.sums.items() if key.startswith("excluded/")) == 0
    floored.loss.backward()
    assert student.logits_RV is not None
    assert student.logits_RV.grad is not None
    assert bool(student.logits_RV.grad.isfinite().all())
    assert float(student.logits_RV.grad.abs().sum()) > 0.1
    bare = found(None)
    assert float(bare.loss.detach()) == 0  # left out
    assert sum(float(value) for key, value in bare.sums.items() if key.startswith("excluded/")) == 1


def test_ratio_of_old_weights() -> None:
    """The drawn token's term is weighed by min(p/μ, 2); direct terms don't know μ."""
    case, spec = head_case(), spec_of("reverse", support="sampled")
    teacher = teacher_of(case, "words")
    older = dict(case, mu=case["mu"] - 0.1)
    assert not torch.allclose(run_head(case, spec, teacher)[1][0], run_head(older, spec, teacher)[1][0], atol=1e-6)
    far = dict(case, mu=torch.full_like(case["mu"], -50.0))
    assert float(run_head(far, spec, teacher)[0].sums["ratio/capped"]) == len(case["mu"])
    for support in ("full", "tail"):
        direct = spec_of("reverse", support=support)
        given = None if support == "full" else teacher
        ours, theirs = run_head(case, direct, given)[1], run_head(older, direct, given)[1]
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_half_precision_is_computed_in_float32() -> None:
    case = {
        name: one.detach().bfloat16().requires_grad_(one.requires_grad) if one.is_floating_point() else one
        for name, one in head_case().items()
    }
    double = {
        name: one.detach().double().requires_grad_(one.requires_grad) if one.is_floating_point() else one
        for name, one in case.items()
    }
    for spec in (spec_of("forward"), spec_of("reverse")):
        found, expected = run_head(case, spec), run_head(double, spec)
        assert float(found[0].loss.detach()) == pytest.approx(float(expected[0].loss.detach()), rel=2e-5)
        assert torch.allclose(found[1][1].double(), expected[1][1], atol=2e-2)  # rounded to bfloat16 at the end


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"divergence": "jsd", "beta": 0.0}, 'J_β is 0 at both ends.*say divergence = "forward" or "reverse"'),
        ({"divergence": "jsd", "beta": 1.0}, "J_β is 0 at both ends"),
        ({"divergence": "forward", "support": "sampled"}, 'needs support = "full" or "tail"'),
        ({"divergence": "jsd", "support": "unbiased"}, 'needs support = "full" or "tail"'),
        ({"support": "sampled", "temperature": 0.7}, "has not all of them"),
        ({"divergence": "k3"}, "known are forward, reverse, jsd"),
        ({"support": "top_k"}, "known are full, tail, unbiased, sampled"),
    ],
)
def test_what_would_be_another_loss_is_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DistillationSpec(**options)  # type: ignore[arg-type]


def test_a_support_that_the_teacher_cannot_give_is_refused() -> None:
    case = head_case()
    with pytest.raises(ValueError, match='support = "full" needs what'):
        run_head(case, spec_of("reverse"), teacher_of(case, "words"))
    only_y = TeacherRows(logq_y_R=torch.zeros(9, dtype=torch.float64))
    with pytest.raises(ValueError, match='support = "tail" needs what'):
        run_head(case, spec_of("reverse", support="tail"), only_y)


# 18: memory

_PEAK = """
import torch
from pathlib import Path
from rlreason.objective.distillation.head import *
from rlreason.objective.distillation.spec import DistillationSpec
from rlreason.objective.distillation.teacher import OutputHead, TeacherRows
def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))
T, V, H = 4096, 151936, 64
weight = torch.randn(V, H, requires_grad=True)
student = StudentRows(hidden_RH=torch.randn(T, H, requires_grad=True), weight_VH=weight,
                      targets_R=torch.zeros(T, dtype=torch.long), sampler_logprobs_R=torch.zeros(T))
teacher = TeacherRows(head=OutputHead(weight_VH=torch.randn(V, H)), hidden_RH=torch.randn(T, H))
weights = RowWeights(divergence_R=torch.ones(T))
options = DistillationOptions(spec=DistillationSpec())
Path("/proc/self/clear_refs").write_text("5")  # the largest size begins anew
before = status("VmRSS")
distillation_loss(student, teacher, weights, options).loss.backward()
print((status("VmHWM") - before) / (4 * 1024 * V))
"""


@pytest.mark.slow
def test_peak_memory_at_size() -> None:
    """T = 4,096, V = 151,936: below three buffers of 1,024 rows and a fifth, where whole logits are four of each; above
    one, so that something was measured. The process' own largest size: a profiler of 4,096 blocks takes gigabytes."""
    done = subprocess.run([sys.executable, "-c", _PEAK], capture_output=True, text=True, check=True, timeout=1800)
    assert 1.0 < float(done.stdout) < 3.0 * 1.2


def test_peak_memory_is_that_of_two_tiles() -> None:
    """The same count at a size that takes a second: two tiles, gradients and heads, and little beside them."""
    rows, words, hidden, chunk = 256, 8192, 16, 64
    weight = torch.randn(words, hidden, requires_grad=True)
    states = torch.randn(rows, hidden, requires_grad=True)
    student = StudentRows(
        hidden_RH=states, weight_VH=weight,
        targets_R=torch.zeros(rows, dtype=torch.long), sampler_logprobs_R=torch.zeros(rows),
    )  # fmt: skip
    teacher = TeacherRows(head=OutputHead(weight_VH=torch.randn(words, hidden)), hidden_RH=torch.randn(rows, hidden))
    options = DistillationOptions(spec=DistillationSpec(), chunk=chunk)

    def peak() -> float:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            output = distillation_loss(student, teacher, RowWeights(divergence_R=torch.ones(rows)), options)
            output.loss.backward()  # type: ignore[no-untyped-call]
        events = [one for one in seen.profiler.kineto_results.events() if one.name() == "[memory]"]
        return max(accumulate(one.nbytes() for one in sorted(events, key=lambda one: one.start_ns())))

    tile = 4 * chunk * words
    block = 16 * 4 * (1 << 17)  # work space of a block, the same at every size
    assert peak() < 2 * tile + 3 * 4 * hidden * words + block
    assert tile * 4 * 4 > 3 * 3 * tile  # canary: whole logits of both models and their gradients would be 16 tiles
