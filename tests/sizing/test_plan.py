"""`rlreason plan` on size: what it prints, what it refuses, and that what it proposes fits."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rlreason.cli import app
from rlreason.cluster.plan import draws
from rlreason.config import load
from rlreason.config.load import allowed
from rlreason.errors import UsageError
from rlreason.plan import size as plan_size
from rlreason.plan.size import SizeOptions
from rlreason.plan.text import describe
from rlreason.sizing import clock, flops
from rlreason.sizing.cut import Cut
from rlreason.sizing.engine import cache_bytes, engine, read_bytes
from rlreason.sizing.gpus import GPUS
from rlreason.sizing.shape import Attention, ModelShape

#: Qwen/Qwen3-1.7B's config.json.
QWEN3_2B = """
hidden_size = 2048
num_hidden_layers = 28
num_attention_heads = 16
num_key_value_heads = 8
head_dim = 128
intermediate_size = 6144
vocab_size = 151936
tie_word_embeddings = true
max_position_embeddings = 40960
"""
RECIPE = f"""
name = "sized"
[policy]
path = "not/here"
model_type = "qwen3"
dtype = "bfloat16"
[policy.model]
{QWEN3_2B}
[data]
train = "arithmetic"
[[stage]]
kind = "grpo"
name = "grpo"
steps = 10
problems_per_step = 16
samples_per_problem = 8
max_tokens = 2048
[[stage]]
kind = "reject"
name = "traces"
problems = 100
max_tokens = 2048
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    return path


def planned(recipe: Path, *overrides: str, **size: float | str) -> str:
    return describe(load(recipe, overrides), recipe, SizeOptions(**size))  # type: ignore[arg-type]


def refused(recipe: Path, *overrides: str, **size: float | str) -> str:
    with pytest.raises(UsageError) as caught:
        planned(recipe, *overrides, **size)
    return str(caught.value)


def proposal(message: str) -> tuple[str, ...]:
    found = re.search(r"nearest change that fits: ([^(]*?)(?: \(|$)", message)
    assert found is not None, message
    return tuple(found[1].split())


def test_without_a_gpu_sizes_only(recipe: Path) -> None:
    text = planned(recipe)
    assert "policy: 1.72 B parameters; 3.4 GB in bfloat16; keys and values 114.7 kB a token" in text
    assert "memory of the trainer: weights 6.9 GB, gradients 6.9 GB, moments 13.8 GB, bfloat16 copy 3.4 GB" in text
    assert "GPU-hours" not in text
    assert "engine of a GPU" not in text


def test_with_a_gpu_time_and_money(recipe: Path) -> None:
    text = planned(recipe, "trainer.activation_checkpointing=true", gpu="h100", gpus=8, price=2.5)
    assert "8 x h100 (80 GB, 989 TFLOP/s" in text
    assert "the trainer on 1, 7 engine(s) of 1" in text
    hours, dollars = re.findall(r"([\d.,]+) GPU-hours, \$([\d.,]+)", text)[0]
    assert float(dollars) == pytest.approx(2.5 * float(hours), abs=0.2)
    assert "a step: 262,144 tokens of 128 answers" in text


def test_what_is_proposed_fits(recipe: Path) -> None:
    for size, overrides in (
        ({"gpu": "h100", "gpus": 8}, ("stage.grpo.micro_batch_tokens=16384",)),
        ({"gpu": "l4", "gpus": 8}, ("trainer.activation_checkpointing=true",)),
    ):
        message = refused(recipe, *overrides, **size)
        assert "stage 'grpo' takes" in message
        planned(recipe, *overrides, *proposal(message), **size)


def test_an_engine_that_does_not_fit_is_spread(recipe: Path) -> None:
    wide = (
        "policy.model.hidden_size=16384",
        "policy.model.intermediate_size=49152",
        "trainer.ranks=8",
        "trainer.offload=true",
    )
    wide += ("trainer.activation_checkpointing=true",)
    message = refused(recipe, *wide, gpu="h100", gpus=16)
    assert "an engine's weights take" in message
    assert proposal(message) == ("sampler.tensor_parallel=4",)
    planned(recipe, *wide, *proposal(message), gpu="h100", gpus=16)


def test_too_few_gpus_and_unknown_ones(recipe: Path) -> None:
    assert "the trainer holds 8 (trainer.ranks)" in refused(
        recipe, "trainer.ranks=8", "cluster.colocate=false", gpu="h100", gpus=8
    )
    assert "did you mean 'h100'" in refused(recipe, gpu="h10")
    done = CliRunner().invoke(app, ["plan", str(recipe), "--gpus", "8"])
    assert "say which" in str(done.exception)


def test_in_turns_on_one_gpu(recipe: Path) -> None:
    """What the trainer keeps while engines draw is not the engine's."""
    turns = ("cluster.kind=ray", "cluster.colocate=true", "cluster.rollout_workers=1", "cluster.gpus_per_worker=0.5")
    turns += ("trainer.activation_checkpointing=true",)
    text = planned(recipe, *turns, gpu="h100", gpus=1)
    assert "1 engine(s) of 1 on the trainer's GPU in turns" in text
    assert "over Ray, 1 workers, in turns with the trainer on its GPUs; " in text
    # 95 % of 80 GB without masters, moments and copy (14 bytes a parameter); 95 % of that without the weights.
    assert "weights 3.4 GB, keys and values 45.9 GB" in text


def test_turns_are_the_default_where_the_trainer_leaves_no_gpu(recipe: Path) -> None:
    ray = ("cluster.kind=ray", "trainer.activation_checkpointing=true")
    text = planned(recipe, *ray, gpu="h100", gpus=1)
    assert "1 engine(s) of 1 on the trainer's GPU in turns" in text
    assert "over Ray, in turns with the trainer where it leaves no GPU; " in text
    assert "1 engine(s) of 1 beside it" in planned(recipe, *ray, gpu="h100", gpus=2)
    assert "4 engine(s) of 1 on the trainer's GPUs in turns" in planned(
        recipe, *ray, "trainer.ranks=4", gpu="h100", gpus=4
    )


def test_a_teacher_in_a_worker_is_counted(recipe: Path) -> None:
    head = RECIPE[: RECIPE.index("[[stage]]")]
    teacher = '[teacher.big]\nmodel = "policy"\nwhere = "worker"\n'
    stage = '[[stage]]\nkind = "opd"\nname = "opd"\nsteps = 1\nproblems_per_step = 4\nmax_tokens = 64\n'
    student = head[head.index("[policy]") : head.index("[data]")].replace("policy", "student")
    recipe.write_text(head + student.replace("not/here", "not/there") + teacher + stage)
    some = ("cluster.kind=ray", "trainer.activation_checkpointing=true")
    assert "the trainer on 1, 1 teacher(s) of 1, 6 engine(s) of 1 beside it" in planned(
        recipe, *some, gpu="h100", gpus=8
    )
    said = refused(recipe, *some, gpu="h100", gpus=2)
    assert "the trainer holds 1 (trainer.ranks) and teachers in workers 1, and 1 engine(s)" in said


def test_the_first_ranks_host_reads_the_whole_model(recipe: Path) -> None:
    """1.72 B parameters: in float32, or the frozen ones of an adapter in bfloat16; nothing without ranks."""
    assert "of the first rank's host 6.9 GB while it reads" in planned(recipe, "trainer.ranks=2")
    assert "of the first rank's host 3.4 GB while" in planned(recipe, "trainer.ranks=2", "trainer.lora.rank=16")
    assert "while it reads the whole model" not in planned(recipe)


def test_what_is_delivered(recipe: Path) -> None:
    """All weights are packed on the host and sent; over Ray an adapter travels alone, in float32."""
    some = ("trainer.activation_checkpointing=true",)
    card: dict[str, float | str] = {"gpu": "h100", "gpus": 8}
    full = planned(recipe, *some, **card)
    assert "delivers 1.04 s (all weights, packed at 3.8 GB/s, sent at 25 GB/s)" in full  # 3.44 GB
    broadcast = planned(recipe, *some, "cluster.kind=ray", "sampler.transport=collective", **card)
    assert "delivers 0.138 s (all weights, sent at 25 GB/s)" in broadcast
    lora = (*some, "cluster.kind=ray", "trainer.lora.rank=16")
    # Of each of 28 layers: 16 · (in + out) of q, k, v, o and the MLP's three: 17.4 M numbers.
    numbers = 28 * 16 * (2 * (2048 + 2048) + 2 * (2048 + 1024) + 3 * (2048 + 6144))
    seconds = 4 * numbers * (1 / 3.8e9 + 1 / 25e9)
    assert f"delivers {seconds:.3g} s (the adapter alone, packed" in planned(recipe, *lora, **card)
    assert "(all weights, packed" in planned(recipe, *lora, "sampler.delivery=full", **card)
    assert "delivers 3.44 s (all weights, at 1 GB/s)" in planned(recipe, *some, **card, delivery=1e9)


def test_who_evaluates_draws(recipe: Path) -> None:
    """As a run has it: whoever measures a policy wants an engine, whatever the stage's kind."""
    head = RECIPE[: RECIPE.index("[[stage]]")]
    sft = '[[stage]]\nkind = "sft"\nname = "cold"\nsteps = 1\nbatch_size = 8\n'
    measured = '[[stage]]\nkind = "eval"\nname = "measured"\nmodels = ["cold"]\nmax_tokens = 64\n'
    eight: dict[str, float | str] = {"gpu": "h100", "gpus": 8}
    for text, said in (
        (sft, "the trainer on 1, no engine"),
        (sft + "eval_every = 1\n", "the trainer on 1, 7 engine(s) of 1 beside it"),
        (sft + measured, "the trainer on 1, 7 engine(s) of 1 beside it"),
    ):
        recipe.write_text(head + text)
        assert said in planned(recipe, "trainer.activation_checkpointing=true", **eight)
        assert draws(load(recipe)) == ("no engine" not in said)
    one = ("cluster.kind=inline", "trainer.activation_checkpointing=true")
    assert "1 engine(s) of 1 on the trainer's GPU in turns" in planned(recipe, *one, gpu="h100", gpus=1)


def test_nothing_fits(recipe: Path) -> None:
    message = refused(
        recipe, "policy.model.hidden_size=16384", "policy.model.intermediate_size=65536", gpu="l4", gpus=2
    )
    assert "nothing that rlreason has makes it fit 2 of them" in message


def test_without_torch_it_says_so(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_size, "find_spec", lambda name: None if name == "torch" else object())
    assert "size     not known: sizes need torch, not installed here" in planned(recipe)
    assert "sizes need torch" in refused(recipe, gpu="h100")


def test_a_model_that_is_not_here_is_said(recipe: Path) -> None:
    recipe.write_text(re.sub(r"\[policy.model\].*?\[data\]", "[data]", RECIPE, flags=re.DOTALL))
    assert "the size of not/here is not known" in planned(recipe)
    assert "the size of not/here is not known" in refused(recipe, gpu="h100")
    assert "no such folder: ./nowhere" in planned(recipe, "policy.path=./nowhere")


def shape(**changed: object) -> ModelShape:
    one = Attention(heads=4, key_width=8, value_width=8, cached=32, cuts=2, window=None)
    values: dict[str, object] = {
        "total": 1000, "active": 400, "layer_products": 300, "last_products": 0, "head": 100, "outside": 100,
        "layer_parts": ((50, 400),), "routed_layers": 2, "vocabulary": 10, "hidden": 10, "plain_head": True,
        "experts": 4, "chosen": 1, "routed": 800, "attention": (one, one), **changed,
    }  # fmt: skip
    return ModelShape(**values)  # type: ignore[arg-type]


def test_engines_by_hand() -> None:
    assert cache_bytes(shape(), 10, 2) == 2 * 10 * 2 * 32
    assert cache_bytes(shape(), 10, 2, tensor_parallel=2) == 2 * 10 * 2 * 32 / 2
    assert cache_bytes(shape(), 10, 2, tensor_parallel=8) == 2 * 10 * 2 * 32 / 2  # two groups: no further
    latent = Attention(heads=4, key_width=8, value_width=8, cached=32, cuts=1, window=4)
    assert cache_bytes(shape(attention=(latent,)), 10, 2, tensor_parallel=8) == 2 * 4 * 32
    found = engine(shape(), 10_000, 10, width=2, tensor_parallel=2, most_rows=100)
    assert (found.weights, found.cache, found.row, found.rows) == (1000, 8500, 640, 13)
    assert engine(shape(), 900, 10, width=2, tensor_parallel=1, most_rows=100).rows == 0
    # One row goes to one expert of four, which is in layer_products already; two rows to 1 - (3/4)^2 of them.
    assert read_bytes(shape(), 1, 10, width=2, tensor_parallel=1) == pytest.approx(2 * 400 + 1280)
    more = 800 * (1 - 0.75**2 - 0.25)
    assert read_bytes(shape(), 2, 10, width=2, tensor_parallel=1) == pytest.approx(2 * (400 + more) + 2 * 1280)


def test_the_slower_resource_is_the_bound() -> None:
    gpu = GPUS["h100"]
    assert clock.training_time(989e12 * 8, 0.0, gpu, 8) == clock.Bound(seconds=1.0, by="products")
    assert clock.training_time(0.0, 450e9, gpu, 8) == clock.Bound(seconds=1.0, by="gathering shards")
    assert clock.training_time(0.0, 450e9, gpu, 16).seconds == 9.0  # another host: 50 GB/s
    assert clock.shard_traffic(100, 10, 2, 4, 3) == 3 * (8 * 100 + 4 * 10) * 3 / 4
    assert clock.shard_traffic(100, 10, 2, 1, 3) == 0
    draw = clock.Draw(count=8, prompt=0, completion=100, engines=2, rows=2, tensor_parallel=1, width=2)
    token = read_bytes(shape(), 2, 50, width=2, tensor_parallel=1) / gpu.bandwidth
    prompts = flops.pass_of(shape(), 0, 0, 4).total / gpu.flops
    assert clock.drawing_time(shape(), draw, gpu).seconds == pytest.approx(2 * 100 * token + prompts)
    assert clock.delivery_time(25e9, packed=False) == 1.0
    assert clock.delivery_time(25e9) == pytest.approx(1 + 25 / 3.8)


def test_ranks_that_share_layers_by_hand() -> None:
    """Eight ranks, two of them on the same samples, experts over four."""
    cut, gpu = Cut(ranks=8, tensor=2, experts=4), GPUS["h100"]
    assert (cut.shards, cut.rows, cut.copies) == (8, 4, 2)
    assert cut.layer(shape()) == 50 / 2 + 400 / 4
    assert Cut(ranks=8).layer(shape()) == 450
    # Root 100 over 8 ranks, 100 dense over 4 by halves, 800 routed over 2 by quarters: 8 bytes each, 3 micro-batches.
    assert clock.cut_traffic(shape(), cut, 2, 3) == 3 * 8 * (100 * 7 / 8 + 50 * 3 / 4 + 200 / 2)
    assert clock.cut_traffic(shape(), Cut(ranks=4), 2, 3) == pytest.approx(clock.shard_traffic(1000, 0, 2, 4, 3))
    # 7 tokens of 10 numbers in 2 bytes; two sums a layer, of which each rank sends 2 · 1/2; two journeys of each token
    # to one expert, of which 3/4 leave the rank, and either tensor rank sends half.
    sums, sent = 2 * 2 * 2 * 140 / 2, 2 * 2 * 140 / 2 * 3 / 4
    assert clock.exchanges(shape(), cut, 2, 7, gpu, recompute=False) == pytest.approx(2 * (sums + sent) / 450e9)
    assert clock.exchanges(shape(), cut, 2, 7, gpu, recompute=True) == pytest.approx(3 * (sums + sent) / 450e9)
    assert clock.exchanges(shape(), Cut(ranks=8), 2, 7, gpu, recompute=True) == 0
    assert clock.training_time(989e12, 0.0, gpu, 1, 3.0) == clock.Bound(seconds=4.0, by="exchanges within layers")


def test_a_plan_knows_who_shares_what(recipe: Path) -> None:
    wide = ("trainer.ranks=8", "trainer.activation_checkpointing=true", "cluster.colocate=true", "cluster.kind=ray")
    eight: dict[str, float | str] = {"gpu": "h100", "gpus": 8}
    alone, shared = planned(recipe, *wide, **eight), planned(recipe, *wide, "trainer.tensor_parallel=4", **eight)

    def part(text: str, name: str) -> float:
        return float(re.findall(rf"{name} ([\d.]+) GB", text)[0])

    assert part(shared, "weights") == part(alone, "weights")
    assert part(shared, "gathered") < part(alone, "gathered")  # layers by quarters; what is outside of them stays
    assert part(shared, "activations") == pytest.approx(part(alone, "activations"), rel=0.2)  # states between layers
    assert "num_key_value_heads = 8" in refused(recipe, *wide, "trainer.ranks=16", "trainer.tensor_parallel=16")
    assert planned(recipe, *wide, "trainer.expert_parallel=4", **eight) == alone  # a dense model has no experts


def test_what_the_schema_refuses_is_not_proposed(recipe: Path) -> None:
    """Ten GPUs are no two rows of four, and an adapter is not trained by tensor ranks."""
    wide = (
        "policy.model.hidden_size=8192",
        "policy.model.intermediate_size=28672",
        "trainer.activation_checkpointing=true",
    )
    wide += ("trainer.ranks=4", "trainer.tensor_parallel=4", "stage.grpo.micro_batch_tokens=2304")
    proposed = proposal(refused(recipe, *wide, gpu="h100", gpus=11))
    assert "trainer.ranks=8" in proposed
    load(recipe, (*wide, *proposed))
    assert allowed(load(recipe, wide), proposed)
    assert not allowed(load(recipe, wide), ("trainer.ranks=10",))
    assert not allowed(load(recipe, wide), ("trainer.lora.rank=16",))


def test_every_gpu_names_its_source() -> None:
    for gpu in GPUS.values():
        assert "data sheet" in gpu.source or "paper" in gpu.source
        assert gpu.flops / gpu.bandwidth > 50  # FLOP a byte: no unit is off by a thousand
        assert gpu.flops / gpu.bandwidth < 500


def test_a_tokenizer_that_a_run_would_refuse(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("".join(f'{{"prompt": "{n} + 1?", "answer": "{n + 1}"}}\n' for n in range(20)))
    path = tmp_path / "recipe.toml"
    text = RECIPE.replace('path = "not/here"\n', "").replace('train = "arithmetic"', 'train = "data.jsonl"')
    text = text.replace("[policy.model]", '[policy.tokenizer]\nkind = "characters"\n[policy.model]')
    path.write_text(text)
    assert '"characters" needs a procedural task' in refused(path)
    assert "size     policy" in planned(path, "policy.tokenizer.kind=bpe", "policy.tokenizer.vocab_size=500")


def test_experts_are_spread_where_whole_layers_do_not_fit(recipe: Path) -> None:
    """A layer of many experts, gathered whole: shards fit, and it does not."""
    experts = ("num_experts=128", "num_experts_per_tok=8", "moe_intermediate_size=3072", "num_hidden_layers=4")
    wide = ("policy.model_type=qwen3_moe", *(f"policy.model.{one}" for one in experts), "policy.model.hidden_size=4096")
    wide += ("trainer.activation_checkpointing=true", "trainer.ranks=64", "stage.grpo.micro_batch_tokens=2304")
    message = refused(recipe, *wide, gpu="a100-40", gpus=72)
    assert "trainer.expert_parallel=64" in proposal(message)
    planned(recipe, *wide, *proposal(message), "sampler.tensor_parallel=2", gpu="a100-40", gpus=72)
