"""States: written by one process or N ranks, read by any; consolidated into a folder by one tensor at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, safe_open
from torch import Tensor

pytest.importorskip("ray")

from peft import PeftModel
from ranks_tools import CPU, FAMILIES, options, rollouts, source, start
from transformers import AutoModelForCausalLM, PreTrainedModel

from rlreason.cluster.actors import ActorGroup
from rlreason.consolidate import ConsolidateOptions, consolidate
from rlreason.errors import UsageError
from rlreason.policy.lora import LoraOptions
from rlreason.policy.policies import Policy, PolicySource
from rlreason.trainer.local import LocalTrainer
from rlreason.trainer.options import ModelSource
from rlreason.trainer.protocol import Trainer
from rlreason.trainer.rank import RankSpec
from rlreason.trainer.ray_trainer import RayTrainer
from rlreason.trainer.states import StateTensors, read_note
from rlreason.trainer.streaming import write_folder


@pytest.fixture(scope="module")
def two() -> Iterator[ActorGroup]:
    """Ranks that serve all tests."""
    group = start(2)
    yield group
    group.close()


def local(where: PolicySource, **changed: Any) -> LocalTrainer:
    return LocalTrainer(where.load(torch.float32, CPU), options(**changed))


def sharded(group: ActorGroup, where: PolicySource, **changed: Any) -> RayTrainer:
    settings = options(**changed)
    return RayTrainer(RankSpec(model=ModelSource(source=where, dtype=settings.compute_dtype), options=settings), group)


def trained(trainer: Trainer, steps: range) -> dict[str, Tensor]:
    samples, loss = rollouts()
    for step in steps:
        trainer.forward_backward(samples, loss)
        trainer.step(step)
    return {name: one.clone() for name, one in trainer.weights()}


@pytest.mark.parametrize("compute_dtype", [torch.float32, torch.bfloat16])
def test_a_state_goes_from_one_process_to_ranks_and_back(
    compute_dtype: torch.dtype, tmp_path: Path, two: ActorGroup
) -> None:
    """DeepSeek's router has a buffer; weights arrive bit for bit, the next step within the rounding of sums."""
    where = source("deepseek_v3")
    one, many = local(where, compute_dtype=compute_dtype), sharded(two, where, compute_dtype=compute_dtype)
    before = trained(one, range(2))
    (tmp_path / "one").mkdir()
    one.save_state(tmp_path / "one")
    many.load_state(tmp_path / "one")
    assert all(torch.equal(tensor, before[name]) for name, tensor in many.weights())
    (tmp_path / "many").mkdir()
    many.save_state(tmp_path / "many")
    assert [read_note(tmp_path / name).ranks for name in ("one", "many")] == [0, 2]
    saved = [StateTensors(tmp_path / name) for name in ("one", "many")]  # weights, buffers and moments
    assert saved[0].shapes == saved[1].shapes
    assert all(torch.equal(saved[0].read(name), saved[1].read(name)) for name in saved[0].shapes)
    again = local(where, compute_dtype=compute_dtype)
    again.load_state(tmp_path / "many")
    expected = trained(one, range(2, 4))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in trained(again, range(2, 4)).items())
    if compute_dtype == torch.float32:
        found = trained(many, range(2, 4))
        assert max(float((found[name] - tensor).abs().max()) for name, tensor in expected.items()) < 2e-5


def test_a_state_of_another_model_or_none_is_refused(tmp_path: Path) -> None:
    local(source("qwen3")).save_state(tmp_path)
    with pytest.raises(UsageError, match=r"state of another model: model\..* differs"):
        local(source("mixtral")).load_state(tmp_path)
    (tmp_path / "run" / "step-00000002").mkdir(parents=True)
    (tmp_path / "run" / "step-00000002" / "trainer.json").write_text("{}")
    with pytest.raises(UsageError, match=r"has no trainer\.json; did you mean .*step-00000002\?"):
        read_note(tmp_path / "run")


def folders(one: Path, two: Path) -> None:
    """Two folders hold one model: what transformers reads, bit for bit, and the same files of config and tokenizer."""
    for file in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (one / file).read_text() == (two / file).read_text(), file
    models = []
    for folder in (one, two):
        model, found = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", output_loading_info=True)
        assert not any(found[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        models.append(model.state_dict())
    assert all(torch.equal(tensor, models[1][name]) for name, tensor in models[0].items())


@pytest.mark.parametrize("family", FAMILIES)
def test_consolidated_is_what_the_trainer_saves(family: str, tmp_path: Path, two: ActorGroup) -> None:
    trainer = sharded(two, source(family), checkpoint_dtype=torch.bfloat16)
    trained(trainer, range(1))
    (tmp_path / "state").mkdir()
    (tmp_path / "saved").mkdir()
    trainer.save_state(tmp_path / "state")
    trainer.save(tmp_path / "saved")
    made = consolidate(tmp_path / "state", tmp_path / "out", ConsolidateOptions(shard_bytes=8_000))
    assert (made.what, made.dtype, made.ranks) == ("model", "bfloat16", 2)
    folders(tmp_path / "out", tmp_path / "saved")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = {path.name for path in (tmp_path / "out").glob("*.safetensors")}
    assert set(index["weight_map"].values()) == files
    assert len(files) > 2
    assert index["metadata"]["total_size"] == sum(
        one.nbytes for name in files for one in load_file(tmp_path / "out" / name).values()
    )
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| Written by | 2 ranks |" in card
    assert str(tmp_path / "state") in card
    exact = consolidate(tmp_path / "state", tmp_path / "exact", ConsolidateOptions(dtype="float32"))
    assert exact.dtype == "float32"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "exact", dtype=torch.float32).state_dict()
    saved = StateTensors(tmp_path / "state")
    assert all(torch.equal(model[name], saved.read("model." + name)) for name in model if name != "lm_head.weight")


@pytest.mark.parametrize("family", ["qwen3_tied", "qwen3_moe", "deepseek_v3"])
def test_an_adapter_is_merged_or_given_to_peft(family: str, tmp_path: Path, two: ActorGroup) -> None:
    source(family).load(torch.float32, CPU).save(tmp_path / "base")
    where = PolicySource(path=str(tmp_path / "base"))
    moe = any("experts" in key for key in FAMILIES[family])
    trainer = sharded(two, where, lora=LoraOptions(rank=4, alpha=8.0, experts=moe))
    trained(trainer, range(2))
    for name in ("state", "saved"):
        (tmp_path / name).mkdir()
    trainer.save_state(tmp_path / "state")
    trainer.save(tmp_path / "saved")
    made = consolidate(tmp_path / "state", tmp_path / "merged", ConsolidateOptions(merge=True))
    assert made.what == "merged model"
    folders(tmp_path / "merged", tmp_path / "saved")
    alone = consolidate(tmp_path / "state", tmp_path / "alone", ConsolidateOptions())
    assert (alone.what, alone.dtype) == ("adapter", "float32")
    saved = tmp_path / "saved" / "adapter"
    for adapter in (tmp_path / "alone", tmp_path / "merged" / "adapter"):
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            assert (adapter / file).read_bytes() == (saved / file).read_bytes()
    config = json.loads((saved / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "base")
    adapted = PeftModel.from_pretrained(where.load(torch.float32, CPU).model, tmp_path / "alone")
    logits = adapted(input_ids=torch.tensor([[3, 4, 5]])).logits[0, -1]
    assert float((torch.log_softmax(logits, -1) - trainer.expectations([(3, 4, 5)])[0]).abs().max()) < 1e-5
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(UsageError, match="which is gone: name its base by --base"):
        consolidate(tmp_path / "state", tmp_path / "again", ConsolidateOptions(merge=True))
    assert not (tmp_path / "again").exists()
    options = ConsolidateOptions(merge=True, base=str(tmp_path / "moved"))
    consolidate(tmp_path / "state", tmp_path / "again", options)
    folders(tmp_path / "again", tmp_path / "saved")


def test_what_can_not_be_consolidated_is_refused(tmp_path: Path) -> None:
    local(source("qwen3"), lora=LoraOptions(rank=2, alpha=4.0)).save_state(tmp_path)
    with pytest.raises(UsageError, match=r"built from nothing.*name a folder that has them by --base"):
        consolidate(tmp_path, tmp_path / "out", ConsolidateOptions(merge=True))
    assert consolidate(tmp_path, tmp_path / "out", ConsolidateOptions()).what == "adapter"
    with pytest.raises(UsageError, match="exists: name a new folder"):
        consolidate(tmp_path, tmp_path / "out", ConsolidateOptions())
    local(source("qwen3")).save_state(tmp_path)
    with pytest.raises(UsageError, match="of a whole model, not of an adapter"):
        consolidate(tmp_path, tmp_path / "other", ConsolidateOptions(merge=True))


MEASURED = """
import resource, sys, threading
from pathlib import Path
import torch
from rlreason.consolidate import ConsolidateOptions, consolidate
from rlreason.trainer.states import StateTensors

def private():
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("RssAnon"))

state, out, whole = Path(sys.argv[1]), Path(sys.argv[2]), len(sys.argv) > 3
read = StateTensors.read
before, seen, kept = 0, [], []
def watched(self, name):
    found = read(self, name)
    seen.append(private() - before)
    if whole:
        kept.append(found)
    return found
StateTensors.read = watched
torch.set_num_threads(1)
consolidate(state, out.with_name(out.name + "-first"), ConsolidateOptions())  # what is imported stays
seen.clear()
kept.clear()
before = private()
consolidate(state, out, ConsolidateOptions())
print(max(seen))
"""


@pytest.mark.parametrize("family", [pytest.param("qwen3", marks=pytest.mark.slow), "qwen3_moe"])
def test_it_holds_one_tensor_at_a_time(family: str, tmp_path: Path, two: ActorGroup) -> None:
    """Private memory when each tensor has been read: that tensor, what came before being given back; 4 MB for the rest.
    One that keeps what it has read is seen."""
    where = source(family)
    assert where.config is not None
    shape = {"hidden_size": 512, "num_hidden_layers": 16, "intermediate_size": 2048, "moe_intermediate_size": 256}
    config = where.config.model_copy(update={"model": {**where.config.model, **shape}})
    big = PolicySource(config=config, tokenizer=where.tokenizer)
    state = tmp_path / "state"
    state.mkdir()
    trainer = sharded(two, big)
    trainer.save_state(state)
    trainer.close()
    sizes = [one.numel() * 4 for one in StateTensors(state).shapes.values()]
    found = []
    for arguments in ([], ["whole"]):
        command = [sys.executable, "-c", MEASURED, str(state), str(tmp_path / f"out{len(arguments)}"), *arguments]
        environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed goes back at once
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
        assert done.returncode == 0, done.stderr
        found.append(int(done.stdout))
    assert sum(sizes) > 20 * max(sizes)
    assert found[0] <= 3 * max(sizes) + (4 << 20), (found, max(sizes), sum(sizes))
    assert found[1] > 0.8 * sum(sizes), "the measurement would not see a whole model"


def test_a_tensor_that_the_model_has_not_or_lacks_is_no_folder(tmp_path: Path) -> None:
    policy = source("qwen3").load(torch.float32, CPU)
    policy.model.config.dtype = torch.float32

    def given(policy: Policy, change: Callable[[dict[str, Tensor]], object]) -> None:
        tensors = dict(policy.model.state_dict())
        change(tensors)
        write_folder(policy, tensors.items(), tmp_path)

    with pytest.raises(RuntimeError, match=r"1 tensors of the model were not given, lm_head\.weight first"):
        given(policy, lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(RuntimeError, match=r"model\.norm\.weight is torch\.float32 \[3\]"):
        given(policy, lambda tensors: tensors.update({"model.norm.weight": torch.zeros(3)}))
    given(policy, lambda tensors: None)
    model: PreTrainedModel = policy.model
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert all(torch.equal(file.get_tensor(name), model.state_dict()[name]) for name in file.keys())  # noqa: SIM118
