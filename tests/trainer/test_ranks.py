"""N ranks = one process: real Ray actors, gloo, FSDP2; gradients, curves, states, folders, and a rank that dies."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch import Tensor

pytest.importorskip("ray")

from ranks_tools import CPU, FAMILIES, LossOfFields, demonstrations, options, relative, rollouts, source, start
from transformers import AutoModelForCausalLM

from rlreason.cluster.actors import ActorGroup, ActorsDied
from rlreason.config import OptimizerConfig
from rlreason.diagnose.experts import balance_shares
from rlreason.errors import UsageError
from rlreason.objective.distillation.spec import FORWARD, DistillationSpec
from rlreason.objective.presets import PRESETS
from rlreason.objective.scores import StepScores
from rlreason.policy.policies import PolicySource
from rlreason.routing import correction_biases
from rlreason.trainer.distilling import DistillationLoss
from rlreason.trainer.forward import CrossEntropyLoss, PolicyGradientLoss
from rlreason.trainer.local import LocalTrainer
from rlreason.trainer.options import ModelSource
from rlreason.trainer.protocol import Trainer
from rlreason.trainer.rank import RankSpec
from rlreason.trainer.ray_trainer import RayTrainer
from rlreason.trainer.states import check_whole
from rlreason.trainer.teachers import TeacherScorer, TeacherSpec


@pytest.fixture(scope="module")
def ranks() -> Iterator[Callable[[int], ActorGroup]]:
    """Ranks that are started once and serve all tests."""
    open_: dict[int, ActorGroup] = {}

    def of(count: int) -> ActorGroup:
        if count not in open_ or open_[count].closed:
            open_[count] = start(count)
        return open_[count]

    yield of
    for group in open_.values():
        group.close()


def local(family: str, **changed: Any) -> LocalTrainer:
    return LocalTrainer(source(family).load(torch.float32, CPU), options(**changed))


def sharded(group: ActorGroup, family: str, *, reference: bool = False, **changed: Any) -> RayTrainer:
    settings = options(**changed)
    model = ModelSource(source=source(family), dtype=settings.compute_dtype)
    return RayTrainer(RankSpec(model=model, options=settings, reference=reference), group)


def gradients_of(trainer: LocalTrainer) -> dict[str, Tensor]:
    return {name: one.grad.clone() for name, one in trainer.model.named_parameters() if one.grad is not None}


#: Rollouts on two ranks of every family, on three of those with uneven shards or a tie, and demonstrations of two.
CURVES = [(family, 2, "rollouts") for family in FAMILIES]
CURVES += [(family, 3, "rollouts") for family in ("qwen3_tied", "qwen3_moe", "deepseek_v3")]
CURVES += [("qwen3", 2, "demonstrations"), ("mixtral", 3, "demonstrations")]


@pytest.mark.parametrize(("family", "count", "data"), CURVES)
def test_gradients_and_ten_steps_are_those_of_one_process(
    family: str, count: int, data: str, ranks: Callable[[int], ActorGroup]
) -> None:
    samples, loss = {"rollouts": rollouts, "demonstrations": demonstrations}[data]()
    one, many = local(family), sharded(ranks(count), family)
    one.forward_backward(samples, loss)
    many.forward_backward(samples, loss)
    expected, found = gradients_of(one), ranks(count).ask("gradients")[0]
    assert relative(found, expected) <= 1e-6
    for step in range(10):
        if step:
            sums = [trainer.forward_backward(samples, loss).read(1.0) for trainer in (one, many)]
            assert sums[1] == pytest.approx(sums[0], rel=1e-5, abs=1e-5)
        stats = [trainer.step(step) for trainer in (one, many)]
        assert stats[1].grad_norm == pytest.approx(stats[0].grad_norm, rel=1e-4)


@pytest.mark.parametrize("parallel", [1, 2])
def test_ranks_take_the_steps_of_the_bias_of_one_process(
    parallel: int, ranks: Callable[[int], ActorGroup], tmp_path: Path
) -> None:
    """Of all ranks' tokens; with tensor and expert parallelism both ranks count the same ones. The last call has one
    sample, so that a rank of two has none."""
    samples, loss = rollouts()
    changed = {"router_bias_update": 0.01, "optimizer": OptimizerConfig(lr=1e-5)}
    one = local("deepseek_v3", **changed)
    many = sharded(ranks(2), "deepseek_v3", tensor_parallel=parallel, expert_parallel=parallel, **changed)
    for step in range(4):
        for own in ([samples[:5], samples[5:]], [samples], [samples[:8]], [samples[:1]])[step]:
            for trainer in (one, many):
                trainer.forward_backward(own, loss)
        for trainer in (one, many):
            trainer.step(step)
        expected = torch.stack(correction_biases(one.model))
        found = ranks(2).ask("biases")
        assert all(torch.equal(bias, expected) for bias in found)
    assert expected.unique().numel() > 2
    sent = dict(many.weights())
    name = "model.layers.1.mlp.gate.e_score_correction_bias"
    assert sent[name].dtype == torch.float32
    assert torch.equal(sent[name], expected[0])
    many.save(tmp_path / "folder")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "folder")
    assert torch.equal(torch.stack(correction_biases(model)), expected)
    many.save_state(tmp_path)
    again = local("deepseek_v3", **changed)
    again.load_state(tmp_path)
    assert torch.equal(torch.stack(correction_biases(again.model)), expected)


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral"])
def test_ranks_keep_routers_in_float32(family: str, ranks: Callable[[int], ActorGroup], tmp_path: Path) -> None:
    """They compute what one process does, to bfloat16; what is sent of routers are the masters, every bit of them. The
    reference has them too: of a policy that did not move, the penalty is 0."""
    samples, loss = rollouts()
    changed = {"compute_dtype": torch.bfloat16, "float32_routers": True, "sends_float32_routers": True}
    changed |= {"activation_checkpointing": True, "optimizer": OptimizerConfig(lr=1e-6)}
    one, many = local(family, **changed), sharded(ranks(2), family, reference=True, **changed)
    same = zip(many.logprobs(samples), many.logprobs(samples, of="reference"), strict=True)
    assert all(np.array_equal(policy, reference) for policy, reference in same)
    for trainer in (one, many):
        trainer.forward_backward(samples, loss)
    expected = dict(zip(one._masters.names, [m.grad for m in one._masters.parameters], strict=True))
    found = ranks(2).ask("gradients")[0]
    assert relative(found, expected) < 0.02
    before = dict(many.weights())
    many.step(0)
    many.save_state(tmp_path / "state")
    again = local(family, **changed)
    again.load_state(tmp_path / "state")
    held, sent = dict(again.weights()), dict(many.weights())
    wide = {name for name, tensor in sent.items() if tensor.dtype == torch.float32 and "gate.weight" in name}
    assert len(wide) == 2
    for name, tensor in sent.items():
        assert torch.equal(tensor, held[name])
        assert name not in wide or not torch.equal(tensor, before[name])  # a step that bfloat16 would have lost
    many.save(tmp_path / "folder")
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "folder", dtype="auto")
    assert {parameter.dtype for parameter in saved.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(("family", "parallel"), [("qwen3_moe", 1), ("mixtral", 1), ("mixtral", 2)])
def test_ranks_measure_the_balancing_loss_of_one_process(
    family: str, parallel: int, ranks: Callable[[int], ActorGroup], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sample a micro-batch, as that loss depends on the cut; seven of them, so that a rank has a filler, which counts
    for nothing. With layers shared both ranks see the same tokens, which count once."""
    samples, loss = demonstrations()
    changed = {"router_aux_loss": 0.3, "micro_batch_tokens": 1, "activation_checkpointing": True}
    if parallel > 1:  # an even number of experts
        monkeypatch.setitem(FAMILIES, family, {**FAMILIES[family], "num_local_experts": 4})
    one = local(family, **changed)
    many = sharded(ranks(2), family, tensor_parallel=parallel, expert_parallel=parallel, **changed)
    found = [trainer.forward_backward(samples, loss).balance_L2 for trainer in (one, many)]
    assert found[0] is not None
    assert found[1] is not None
    assert torch.allclose(found[1], found[0], rtol=1e-3)
    assert 0.01 < min(balance_shares(found[0])) < max(balance_shares(found[0])) < 0.99
    if parallel == 1:
        assert relative(ranks(2).ask("gradients")[0], gradients_of(one)) <= 1e-6


@pytest.mark.parametrize("preset", ["dapo", "lite_ppo", "reinforce_pp_baseline"])
def test_every_rank_makes_the_advantages_of_the_whole_step(preset: str, ranks: Callable[[int], ActorGroup]) -> None:
    """Groups, and a batch's deviation, lie on several ranks: of its own samples alone a rank would make others."""
    samples, _ = rollouts()
    scores = StepScores(
        spec=PRESETS[preset],
        max_tokens=24,
        scores_N=torch.tensor(
            [1.0, 0.0, 0.5, float("nan"), 0.0, 0.0, 1.0, 0.25, 1.0, 1.0, 1.0, 1.0], dtype=torch.float64
        ),
        sizes_G=(4, 4, 4),
        lengths_N=torch.tensor([int(one.loss_mask.sum()) for one in samples]),
        truncated_N=torch.zeros(12, dtype=torch.bool),
    )
    samples = [replace(one, score_at=at) for at, one in enumerate(samples)]
    loss = PolicyGradientLoss(spec=PRESETS[preset], scores=scores)
    one, many = local("qwen3"), sharded(ranks(2), "qwen3")
    sums = [trainer.forward_backward(samples, loss).read(1.0) for trainer in (one, many)]
    assert sums[1] == pytest.approx(sums[0], rel=1e-5, abs=1e-5)
    expected = gradients_of(one)
    assert relative(ranks(2).ask("gradients")[0], expected) <= 1e-6
    # Canaries: the advantages that the samples came with, and a score that is a tenth off.
    off_N = scores.scores_N.clone()
    off_N[0] = 0.9
    for wrong in (None, replace(scores, scores_N=off_N)):
        other = local("qwen3")
        other.forward_backward(samples, replace(loss, scores=wrong))
        assert relative(gradients_of(other), expected) > 1e-3


def test_ranks_round_ties_as_one_process_does(ranks: Callable[[int], ActorGroup], tmp_path: Path) -> None:
    half = source("qwen3_moe").load(torch.float16, CPU)
    half.save(tmp_path / "half")
    stored = PolicySource(path=str(tmp_path / "half"))
    settings = options(compute_dtype=torch.bfloat16, optimizer=OptimizerConfig(lr=1e-9))
    one = LocalTrainer(stored.load(torch.float32, CPU), settings)
    many = RayTrainer(RankSpec(model=ModelSource(source=stored, dtype=torch.bfloat16), options=settings), ranks(2))
    assert many.rounded == one.rounded > 0.1
    before = dict(many.weights())
    samples, loss = rollouts()
    many.forward_backward(samples, loss)
    many.step(0)
    changed = sum(int((one != before[name]).sum()) for name, one in many.weights())
    assert changed < 1e-3 * many.parameters[0]  # a step of 1e-9 changes next to nothing that is computed with


def test_gradients_canary(ranks: Callable[[int], ActorGroup]) -> None:
    """A hundred-thousandth more on one rank of two is seen by the tolerance of the test above; a mean is by far."""
    samples, loss = demonstrations()
    assert isinstance(loss, CrossEntropyLoss)
    one, many = local("qwen3"), sharded(ranks(2), "qwen3")
    one.forward_backward(samples, loss)
    given, _ = many._shares(samples)
    off = replace(loss, denominator=loss.denominator * (1 + 1e-5))
    group = ranks(2)
    pairs = zip(group._actors, given, (loss, off), strict=True)
    group._wait(
        {
            number: lambda actor=actor, share=share, its=its: actor.forward_backward.remote(share, its)
            for number, (actor, share, its) in enumerate(pairs)
        }
    )
    found = group.ask("gradients")[0]
    assert 1e-6 < relative(found, gradients_of(one)) < 1e-4
    assert relative({name: one / 2 for name, one in found.items()}, gradients_of(one)) > 0.4


def test_averaged_gradients_would_be_seen(ranks: Callable[[int], ActorGroup]) -> None:
    """torch averages over ranks unless told otherwise, and each rank's loss is divided by the step's count already."""
    samples, loss = demonstrations()
    one, many = local("qwen3"), sharded(ranks(3), "qwen3")
    one.forward_backward(samples, loss)
    for wrong in (False, True):
        if wrong:
            ranks(3).ask("average")
        many.forward_backward(samples, loss)
        apart = relative(ranks(3).ask("gradients")[0], gradients_of(one))
        assert apart == pytest.approx(2 / 3, rel=1e-3) if wrong else apart <= 1e-6
        many.step(0)
        many = many if wrong else sharded(ranks(3), "qwen3")


def test_a_pass_without_gradients_leaves_no_stale_head(ranks: Callable[[int], ActorGroup]) -> None:
    """The root (embedding, last norm, head) is gathered by the pass before a step, and must be anew behind it."""
    samples, loss = rollouts()
    apart = []
    for wrong in (False, True):
        one, many = local("qwen3"), sharded(ranks(2), "qwen3")
        if wrong:
            ranks(2).ask("keep_gathered")
        for trainer in (one, many):
            trainer.forward_backward(samples, loss)
            trainer.logprobs(samples)
            trainer.expectations([(3, 4, 5)])
            trainer.step(0)
        pairs = zip(one.logprobs(samples), many.logprobs(samples), strict=True)
        apart.append(max(float(np.abs(a - b).max()) for a, b in pairs))
    assert apart[0] < 1e-5
    assert apart[1] > 1e-3


def test_batches_reach_the_loss_in_float32(ranks: Callable[[int], ActorGroup]) -> None:
    """With bfloat16 compute FSDP would cast what floats in a batch that is a module's argument: sampler log-probs and
    advantages too."""
    samples, loss = rollouts()
    many = sharded(ranks(2), "qwen3", compute_dtype=torch.bfloat16)
    assert many.forward_backward(samples, LossOfFields(loss)).read(1.0)["narrow"] == 0
    given = many._shares(samples)[0]
    assert all(ranks(2).ask("narrow_fields", True, each=given))
    assert not any(ranks(2).ask("narrow_fields", False, each=given))


def test_more_ranks_than_samples_and_unlike_shares(ranks: Callable[[int], ActorGroup]) -> None:
    for lengths in ((12,), (40, 5, 5, 5, 5, 5, 5, 5), (6, 6)):
        samples, loss = demonstrations(lengths)
        one, many = local("qwen3_moe", micro_batch_tokens=12), sharded(ranks(3), "qwen3_moe", micro_batch_tokens=12)
        sums = [trainer.forward_backward(samples, loss).read(1.0) for trainer in (one, many)]
        assert sums[1] == pytest.approx(sums[0], rel=1e-6)
        assert relative(ranks(3).ask("gradients")[0], gradients_of(one)) <= 1e-6


@pytest.mark.parametrize("family", ["qwen3_tied", "qwen3_moe"])
def test_bfloat16_is_within_its_own_noise(family: str, ranks: Callable[[int], ActorGroup]) -> None:
    samples, loss = rollouts()
    exact, one = local(family), local(family, compute_dtype=torch.bfloat16)
    many = sharded(ranks(2), family, compute_dtype=torch.bfloat16)
    exact.forward_backward(samples, loss)
    many.forward_backward(samples, loss)
    outputs = one.forward_backward(samples, loss).read(1.0)
    assert np.isfinite(outputs["loss"])
    truth, found = gradients_of(exact), ranks(2).ask("gradients")[0]
    own = {name: master.grad for name, master in zip(one._masters.names, one._masters.parameters, strict=True)}
    noise = relative({name: gradient for name, gradient in own.items() if gradient is not None}, truth)
    assert all(gradient.dtype == torch.float32 for gradient in found.values())
    assert 1e-4 < relative(found, truth) <= 2 * noise
    weights = dict(many.weights())
    assert {one.dtype for name, one in weights.items() if "inv_freq" not in name} == {torch.bfloat16}


@pytest.mark.parametrize("option", [{"activation_checkpointing": True}, {"offload": True}])
def test_checkpointing_and_offload_change_nothing(option: dict[str, bool], ranks: Callable[[int], ActorGroup]) -> None:
    samples, loss = rollouts()
    found = []
    for changed in ({}, option):
        many = sharded(ranks(2), "qwen3_moe", **changed)
        many.forward_backward(samples, loss)
        found.append((ranks(2).ask("gradients")[0], many.step(0).grad_norm))
        many.close()
    assert all(torch.equal(one, found[1][0][name]) for name, one in found[0][0].items())
    assert found[0][1] == found[1][1]


def test_checkpointing_in_one_process_changes_nothing() -> None:
    samples, loss = rollouts()
    found = []
    for checkpointing in (False, True):
        one = local("qwen3_moe", activation_checkpointing=checkpointing, threads=2)
        one.forward_backward(samples, loss)
        found.append(gradients_of(one))
    assert all(torch.equal(gradient, found[1][name]) for name, gradient in found[0].items())


def test_reference_teacher_logprobs_and_expectations(ranks: Callable[[int], ActorGroup]) -> None:
    samples, _ = demonstrations()
    teacher = source("qwen3", seed=5)
    settings = options()
    kl = DistillationLoss(spec=FORWARD, denominator=100.0, weight=0.5)
    one = LocalTrainer(
        source("qwen3").load(torch.float32, CPU), settings, reference=True, teachers=[teacher.load(torch.float32, CPU)]
    )
    model = ModelSource(source=source("qwen3"), dtype=torch.float32)
    taught = ModelSource(source=teacher, dtype=torch.float32)
    many = RayTrainer(RankSpec(model=model, options=settings, reference=True, teachers=(taught,)), ranks(2))
    for trainer in (one, many):
        trainer.forward_backward(samples, kl)
        trainer.step(0)
    for of in ("policy", "reference"):
        pairs = zip(one.logprobs(samples, 0.7, of), many.logprobs(samples, 0.7, of), strict=True)
        assert max(float(np.abs(a - b).max()) for a, b in pairs) < 1e-5
    assert float((one.expectations([(3, 4, 5)])[0] - many.expectations([(3, 4, 5)])[0]).abs().max()) < 1e-5
    sums = [trainer.forward_backward(samples, kl).read(1.0) for trainer in (one, many)]
    assert sums[1] == pytest.approx(sums[0], rel=1e-5)
    assert (many.vocabulary, many.stop_ids, many.architecture) == (one.vocabulary, one.stop_ids, one.architecture)
    assert many.parameters == one.parameters


def test_a_renewed_reference_is_the_policy_and_travels_in_the_state(
    tmp_path: Path, ranks: Callable[[int], ActorGroup]
) -> None:
    """DeepSeek's router has a buffer. The first reference is another model than the policy that has learnt."""
    samples, loss = rollouts()
    one = LocalTrainer(source("deepseek_v3").load(torch.float32, CPU), options(), reference=True)
    many = sharded(ranks(2), "deepseek_v3", reference=True)
    for trainer in (one, many):
        trainer.forward_backward(samples, loss)
        trainer.step(0)
        before, now = (trainer.logprobs(samples, of=of) for of in ("reference", "policy"))
        assert max(float(np.abs(a - b).max()) for a, b in zip(before, now, strict=True)) > 1e-4
        trainer.renew_reference()
        assert all(map(np.array_equal, trainer.logprobs(samples, of="reference"), now))
    for trainer, name in ((one, "one"), (many, "many")):
        (tmp_path / name).mkdir()
        trainer.save_state(tmp_path / name)
        kept = trainer.logprobs(samples, of="reference")
        for reader in (one, many):
            reader.forward_backward(samples, loss)
            reader.step(1)
            reader.renew_reference()  # what is there before counts for nothing
            reader.load_state(tmp_path / name)
            pairs = zip(reader.logprobs(samples, of="reference"), kept, strict=True)
            assert max(float(np.abs(a - b).max()) for a, b in pairs) < 1e-5


#: What an opd stage asks of a teacher: beside the student, or elsewhere with each of its payloads.
TAUGHT = [
    (None, DistillationSpec()),
    (None, DistillationSpec(divergence="jsd", beta=0.3)),
    ("hidden", DistillationSpec()),
    ("topk", DistillationSpec(support="tail")),
    ("topk", DistillationSpec(support="unbiased")),
    ("sampled", DistillationSpec(support="sampled")),
]


@pytest.mark.parametrize(("payload", "spec"), TAUGHT)
def test_distillation_on_ranks_is_that_of_one_process(
    payload: Any, spec: DistillationSpec, ranks: Callable[[int], ActorGroup]
) -> None:
    samples, _ = rollouts()
    taught = ModelSource(source=source("qwen3_tied", seed=5), dtype=torch.float32)
    loss = DistillationLoss(spec=spec, elsewhere=payload is not None, chunk=7)
    beside = () if payload else (taught,)
    model = ModelSource(source=source("qwen3"), dtype=torch.float32)
    one, other = (
        LocalTrainer(
            source("qwen3").load(torch.float32, CPU),
            options(),
            teachers=[its.source.load(torch.float32, CPU) for its in beside],
        )
        for _ in range(2)
    )
    many = RayTrainer(RankSpec(model=model, options=options(), teachers=beside), ranks(2))
    if payload:
        asked = TeacherSpec(model=taught, payload=payload, k=3, shared=one.vocabulary, micro_batch_tokens=64)
        teacher = TeacherScorer(asked, CPU)
        samples = teacher.score(samples)
        for trainer in (one, other, many):
            trainer.teach([teacher.head()])
    sums = [trainer.forward_backward(samples, loss).read(100.0) for trainer in (one, many)]
    expected = gradients_of(one)
    assert relative(ranks(2).ask("gradients")[0], expected) <= 1e-6
    assert sums[1] == pytest.approx(sums[0], rel=1e-5, abs=1e-6)
    # Canary: rows that count a hundred-thousandth more.
    other.forward_backward([replace(row, weights=row.weights * np.float32(1 + 1e-5)) for row in samples], loss)
    assert relative(gradients_of(other), expected) > 1e-6


def after(trainer: Trainer, steps: range) -> dict[str, Tensor]:
    samples, loss = rollouts()
    for step in steps:
        trainer.forward_backward(samples, loss)
        trainer.step(step)
    return dict(trainer.weights())


def test_a_state_goes_on_bit_for_bit_and_on_another_number_of_ranks(
    tmp_path: Path, ranks: Callable[[int], ActorGroup]
) -> None:
    many = sharded(ranks(2), "deepseek_v3")
    after(many, range(2))
    many.save_state(tmp_path)
    expected = after(many, range(2, 4))
    again = sharded(ranks(2), "deepseek_v3")
    again.load_state(tmp_path)
    found = after(again, range(2, 4))
    assert all(torch.equal(one, found[name]) for name, one in expected.items())
    three = sharded(ranks(3), "deepseek_v3")
    three.load_state(tmp_path)
    other = after(three, range(2, 4))
    apart = max(float((one - other[name]).abs().max()) for name, one in expected.items())
    assert apart < 2e-5  # AdamW turns the rounding of small gradients into steps of up to the learning rate, 1e-3
    with pytest.raises(UsageError, match=r"state of another model: model\..* differs"):
        sharded(ranks(2), "qwen3").load_state(tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_is_what_one_process_writes(family: str, tmp_path: Path, ranks: Callable[[int], ActorGroup]) -> None:
    many, one = (
        sharded(ranks(2), family, checkpoint_dtype=torch.bfloat16),
        local(family, checkpoint_dtype=torch.bfloat16),
    )
    for name, trainer in (("many", many), ("one", one)):
        (tmp_path / name).mkdir()
        trainer.save(tmp_path / name)
    names = [{path.name: path for path in (tmp_path / which).iterdir()} for which in ("many", "one")]
    assert names[0].keys() == names[1].keys()
    for file in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert names[0][file].read_text() == names[1][file].read_text(), file
    models = [AutoModelForCausalLM.from_pretrained(tmp_path / which).state_dict() for which in ("many", "one")]
    assert all(torch.equal(tensor, models[1][name]) for name, tensor in models[0].items())


def test_a_state_that_only_the_ranks_can_see_is_refused_at_once(
    tmp_path: Path, ranks: Callable[[int], ActorGroup], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hosts without a common file system: found when it is saved, not when it is needed."""
    many = sharded(ranks(2), "qwen3")
    many.save_state(tmp_path / "whole")
    many.save(tmp_path / "checkpoint")
    (shard, _) = sorted((tmp_path / "whole" / "shards").glob("*.distcp"))
    shard.unlink()
    with pytest.raises(UsageError, match=r"shards/__0_0\.distcp: .*file system that all hosts share"):
        check_whole(tmp_path / "whole")
    monkeypatch.setattr(many._ranks, "ask", lambda *_: None)  # they write where it can't be seen
    with pytest.raises(UsageError, match=r"trainer\.json: .*file system that all hosts share"):
        many.save_state(tmp_path / "state")
    with pytest.raises(UsageError, match=r"config\.json: .*file system that all hosts share"):
        many.save(tmp_path / "model")
    monkeypatch.undo()


def test_a_rank_that_dies_ends_all(tmp_path: Path, ranks: Callable[[int], ActorGroup]) -> None:
    """And ranks that have ended take nothing for done: a state without weights would follow the last good one."""
    group = ranks(3)
    many = sharded(group, "qwen3")
    processes = [home.process.number for home in group.homes]
    os.kill(processes[1], signal.SIGKILL)
    samples, loss = demonstrations()
    with pytest.raises(ActorsDied, match="trainer rank 1: its process died"):
        many.forward_backward(samples, loss)
    assert group.closed
    for call in (lambda: many.save_state(tmp_path), lambda: many.step(0), lambda: many.logprobs(samples, 1.0)):
        with pytest.raises(ActorsDied, match="have ended"):
            call()
    many.close()
    psutil.wait_procs(mine := [psutil.Process(one) for one in processes if psutil.pid_exists(one)], timeout=30)
    assert not [one for one in mine if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
