"""What `rlreason plan` says of teachers outside of the trainer: each on its one GPU, one after the other, and whether
that GPU holds it. Numbers are by hand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from rlreason.config import PolicyConfig, load
from rlreason.errors import UsageError
from rlreason.plan.size import SizeOptions
from rlreason.plan.text import describe
from rlreason.policy.model import fresh_config
from rlreason.sampler import vllm_teacher
from rlreason.sizing import teaching
from rlreason.sizing.activations import Activations, MicroBatch, count_activations
from rlreason.sizing.shape import Attention, ModelShape
from rlreason.trainer import teachers

#: 28 layers of 2,048 and 151,936 words: Qwen/Qwen3-1.7B.
MODEL = """
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
name = "taught"
[policy]
path = "not/here"
model_type = "qwen3"
dtype = "bfloat16"
[policy.model]
{MODEL}
[student]
path = "not/there"
model_type = "qwen3"
dtype = "bfloat16"
[student.model]
{MODEL}
[data.math]
path = "arithmetic"
[data.code]
path = "countdown"
[cluster]
kind = "ray"
[trainer]
ranks = 2
activation_checkpointing = true
[teacher.one]
model = "policy"
where = "WHERE"
[teacher.two]
model = "policy"
where = "WHERE"
[teacher.other]
model = "policy"
where = "WHERE"
[[stage]]
kind = "opd"
name = "merged"
data = {{ math = 0.75, code = 0.25 }}
route = {{ math = "one", code = "two" }}
steps = 100
problems_per_step = 64
samples_per_problem = 2
max_tokens = 1025
micro_batch_tokens = 2304
MORE
[[stage]]
kind = "opd"
name = "alone"
data = "math"
teacher = "other"
steps = 100
problems_per_step = 64
samples_per_problem = 2
max_tokens = 1025
micro_batch_tokens = 2304
MORE
"""
#: Parameters that multiply a token in a layer, and in the head.
LAYER, HEAD = 2 * 2048 * 2048 + 2 * 2048 * 1024 + 3 * 2048 * 6144, 2048 * 151936
#: Operations of 28 layers' attention for a pair of tokens: 16 heads, keys and values of 128.
PAIR = 28 * 2 * 16 * (128 + 128)


def planned(folder: Path, *overrides: str, where: str = "worker", more: str = "", **size: float | str) -> str:
    path = folder / "recipe.toml"
    path.write_text(RECIPE.replace("WHERE", where).replace("MORE", more))
    return describe(load(path, overrides), path, SizeOptions(**size))  # type: ignore[arg-type]


def of_stage(text: str, name: str) -> str:
    """The lines of a stage on its size."""
    return text[text.index(f" {name} (opd)") :].partition("(opd)\n")[2].partition("(opd)\n")[0]


def seconds(text: str, name: str) -> float:
    found = re.search(rf"{name} ([\d.]+) s", text)
    assert found is not None, text
    return float(found[1])


def test_each_teacher_scores_on_its_own_gpu_one_after_the_other(tmp_path: Path) -> None:
    """A micro-batch of 2,304 tokens is two answers of 1,025 behind one prompt of 256: 2,304 positions are computed.

    128 rows are 64 of them; 48 are teacher one's. At 40 % of an H100's 989 TFLOP/s.
    """
    eight: dict[str, float | str] = {"gpu": "h100", "gpus": 8, "price": 2.0}
    text = planned(tmp_path, **eight)
    assert "the trainer on 2, 3 teacher(s) of 1, 3 engine(s) of 1 beside it" in text
    pairs = 256**2 / 2 + 2 * 1024 * (256 + 512)
    forward = 28 * 2 * LAYER * 2304 + PAIR * pairs + 2 * HEAD * 2050
    took = 64 * forward / (0.4 * 989e12)
    merged, alone = of_stage(text, "merged"), of_stage(text, "alone")
    assert seconds(merged, "teachers score") == pytest.approx(took, rel=0.01)
    assert seconds(merged, "one") == pytest.approx(0.75 * took, rel=0.01)
    assert seconds(merged, "two") == pytest.approx(0.25 * took, rel=0.01)
    assert "one after the other" in merged
    assert seconds(alone, "teachers score") == pytest.approx(took, rel=0.01)
    parts = [seconds(merged, name) for name in ("draws", "teachers score", "learns", "delivers")]
    step = float(re.findall(r"\): ([\d.]+) s, at 40%", merged)[0])
    assert step == pytest.approx(sum(parts), rel=0.01)
    hours, dollars = re.findall(r"([\d.,]+) GPU-hours, \$([\d.,]+)", merged)[0]
    assert float(hours) == pytest.approx(100 * step * 8 / 3600, abs=0.06)
    assert float(dollars) == pytest.approx(2 * 100 * step * 8 / 3600, rel=0.01)


def test_the_trainer_computes_what_is_its_own(tmp_path: Path) -> None:
    """Beside the student a teacher is half as much again; of one that sends states the trainer computes the head."""
    eight: dict[str, float | str] = {"gpu": "h100", "gpus": 8}
    found = {}
    for where, more in (("worker", ""), ("trainer", ""), ("vllm", 'support = "tail"')):
        text = planned(tmp_path, where=where, more=more, **eight)
        found[where] = seconds(of_stage(text, "merged"), "learns")
        assert ("teachers score" in text) == (where != "trainer")
    pairs = 256**2 / 2 + 2 * 1024 * (256 + 512)
    rate = 64 / (0.4 * 989e12 * 2)
    whole = 28 * 2 * LAYER * 2304 + PAIR * pairs + 2 * HEAD * 2050
    assert found["trainer"] - found["vllm"] == pytest.approx(rate * whole, rel=0.02)
    assert found["worker"] - found["vllm"] == pytest.approx(rate * 2 * HEAD * 2050, rel=0.06)


def test_a_teacher_that_its_gpu_does_not_hold_is_refused(tmp_path: Path) -> None:
    """68.5 billion parameters are 137 GB in bfloat16."""
    wide = [f"policy.model.{key}" for key in (
        "hidden_size=8192", "num_hidden_layers=80", "num_attention_heads=64", "intermediate_size=28672",
        "tie_word_embeddings=false",
    )]  # fmt: skip
    count = 80 * (2 * 8192 * 8192 + 2 * 8192 * 1024 + 3 * 8192 * 28672) + 2 * 8192 * 151936
    for where, more in (("worker", ""), ("vllm", 'support = "tail"')):
        with pytest.raises(UsageError) as caught:
            planned(tmp_path, *wide, where=where, more=more, gpu="h100", gpus=8)
        said = str(caught.value)
        assert "stage 'merged': the teacher 'one' takes" in said
        assert f"weights {2 * count / 1e9:.1f} GB" in said
        assert "of an h100's 80 GB 76.0 GB are usable" in said
        assert 'teacher.one.where = "trainer"' in said
    text = planned(tmp_path, *wide, "trainer.ranks=6", where="trainer", gpu="h100", gpus=8)
    assert "memory of the teacher" not in text


def test_a_teacher_that_fits_is_shown(tmp_path: Path) -> None:
    text = planned(tmp_path, gpu="h100", gpus=8)
    assert "memory of the teacher one, on a GPU of its own: weights 3.4 GB, work space" in text
    # In this process it is on the trainer's GPU, beside the student.
    inline = planned(tmp_path, "cluster.kind=inline", "trainer.ranks=0", gpu="h100", gpus=8)
    assert "on a GPU of its own" not in inline
    assert "teacher 6.9 GB" in of_stage(inline, "merged")
    assert "on the trainer's GPU, one after the other" in inline


def shape() -> ModelShape:
    one = Attention(heads=4, key_width=8, value_width=8, cached=32, cuts=2, window=None)
    return ModelShape(
        total=1000, active=1000, layer_products=300, last_products=0, head=100, outside=100, layer_parts=((450, 0),),
        routed_layers=0, vocabulary=10, hidden=10, plain_head=True, experts=0, chosen=0, routed=0, attention=(one, one),
    )  # fmt: skip


def test_memory_and_operations_by_hand() -> None:
    batch = MicroBatch(rows=2, group=2, prompt=3, completion=5)  # 3 + 2 · 4 positions
    passed = Activations(kept=100, peak=150)
    words = teaching.scorer_memory(shape(), 2, batch, passed, states=False)
    assert [part.bytes for part in words.parts] == [2000, 100 + 256 * 28 * 10]
    states = teaching.scorer_memory(shape(), 2, batch, passed, states=True)
    assert states.total == words.total + 11 * 10 * 6
    wide = teaching.scorer_memory(shape(), 2, batch, Activations(kept=100, peak=10**6), states=True)
    assert wide.of("work space") == 10**6
    engine = teaching.engine_memory(shape(), 2, 10)
    assert [part.bytes for part in engine.parts] == [2000, 2 * 10 * 2 * 32, 2048 * 6 * 10]
    scored = teaching.Scored(rows=6, batch=batch)
    pairs = 3**2 / 2 + 2 * 4 * (3 + 2)
    assert teaching.scorer_flops(shape(), scored, flex=True) == 3 * (600 * 11 + 256 * pairs + 200 * 10)
    assert teaching.engine_flops(shape(), scored) == 600 * 48 + 256 * 6 * 32 + 200 * 48


def test_constants_are_those_of_the_teachers() -> None:
    assert teaching.HEAD_ROWS == teachers._ROWS
    assert teaching.STEP_TOKENS == vllm_teacher.STEP_TOKENS


def test_a_forward_pass_keeps_no_layer() -> None:
    """Only the states of the tokens with loss stay; at its peak it has what one layer needs, however many there are."""
    batch = MicroBatch(rows=4, group=2, prompt=8, completion=33)
    found = []
    for layers in (2, 6):
        config = fresh_config(
            PolicyConfig(
                model_type="qwen3",
                model={
                    "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": layers, "num_attention_heads": 4,
                    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 100,
                },
            )
        )  # fmt: skip
        found.append(count_activations(config, batch, torch.float32, trains=False))
        trained = count_activations(config, batch, torch.float32)
        assert found[-1].peak < trained.peak / 2
    assert found[0] == found[1]
    assert found[0].kept >= 4 * 64 * batch.loss_rows
