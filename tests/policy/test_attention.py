"""Attention over packed tokens: every layout beside one dense bool mask, alone and inside of whole models.

flex_attention refuses gradients on a CPU; with that check switched off its eager form has them, and is what the fused
kernel of a GPU is defined by.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.attention.flex_attention as torch_flex
from torch import Tensor
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoConfig, AutoModelForCausalLM

from rlreason.attention_options import AttentionWay
from rlreason.config import OptimizerConfig
from rlreason.errors import UsageError
from rlreason.objective.batch import Batch, Packing
from rlreason.objective.spec import ObjectiveSpec
from rlreason.policy import attention, blocks, layouts
from rlreason.policy.attention import ATTENTION, layout_of, set_attention
from rlreason.policy.batch import pack, supervised_sample
from rlreason.policy.blocks import BLOCK, FlexLayout, block_mask
from rlreason.policy.layouts import Call, SdpaLayout, Tokens
from rlreason.policy.logprobs import plain_head, takes_packed
from rlreason.policy.policies import Policy
from rlreason.policy.tokenizer import character_tokenizer
from rlreason.trainer.forward import PolicyGradientLoss
from rlreason.trainer.local import LocalTrainer
from rlreason.trainer.options import TrainerOptions, checkpoint_activations
from rlreason.trainer.protocol import Models
from rlreason.types import TrainingSample

CPU = torch.device("cpu")
#: (tokens of a prompt, of its completions): shared and single, one of one token, across blocks of 128.
SHORT = ((7, (5, 6, 3)), (4, (4, 1)))
ACROSS = ((70, (90, 40)), (30, (100,)), (1, (61, 2)))
LONG_PROMPT = ((150, (9, 4, 6)),)
NOTHING_BEHIND = ((5, (1, 1)), (3, (1,)))
SETS = {"short": SHORT, "across blocks": ACROSS, "a long prompt": LONG_PROMPT, "single tokens": NOTHING_BEHIND}


@pytest.fixture
def differentiable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """flex_attention with gradients on a CPU."""
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *_: None)
    yield
    torch._dynamo.reset()


def samples(lengths: Any) -> list[TrainingSample]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for prompt, completions in lengths:
        ids = torch.randint(3, 60, (prompt,), generator=generator).tolist()
        for count in completions:
            own = torch.randint(3, 60, (count,), generator=generator).tolist()
            found.append(supervised_sample(ids + own, [0] * prompt + [1] * count))
    return found


def packing_of(lengths: Any) -> Packing:
    packing = pack(samples(lengths), 0, CPU).packing
    assert packing is not None
    return packing


def dense(lengths: Any, window: int | None = None) -> Tensor:
    """Who sees whom, from the lengths alone: bool [L, L]."""
    group, own, at = [], [], []
    for number, (prompt, _) in enumerate(lengths):
        group += [number] * prompt
        own += [-1] * prompt
        at += range(prompt)
    rows = [(number, prompt, count) for number, (prompt, counts) in enumerate(lengths) for count in counts]
    for row, (number, prompt, count) in enumerate(rows):
        group += [number] * (count - 1)
        own += [row] * (count - 1)
        at += range(prompt, prompt + count - 1)
    g, o, p = (torch.tensor(values) for values in (group, own, at))
    seen = (g[:, None] == g) & ((o[None] == -1) | (o[:, None] == o)) & (p[:, None] >= p)
    return seen if window is None else seen & (p[:, None] - p < window)


def attended(layout: Any, length: int, shape: tuple[int, int, int, int], call: Call) -> list[Tensor]:
    """Output [L, heads, D] and the gradients of queries, keys and values. ``shape``: heads, groups, key, value size."""
    heads, groups, wide, narrow = shape
    generator = torch.Generator().manual_seed(1)
    states = [
        torch.randn(1, count, length, size, generator=generator).requires_grad_()
        for count, size in ((heads, wide), (groups, wide), (groups, narrow))
    ]
    out = layout.attend(*states, call)
    (out.square().sum() + out.sum()).backward()
    return [out.detach()[0], *(one.grad for one in states)]


class Dense:
    """SDPA with a bool mask."""

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    def attend(self, query: Tensor, key: Tensor, value: Tensor, call: Call) -> Tensor:
        out = scaled_dot_product_attention(query, key, value, attn_mask=self.mask, scale=call.scale, enable_gqa=True)
        return out.transpose(1, 2)


def apart(one: list[Tensor], other: list[Tensor]) -> list[float]:
    return [float((a - b).abs().max() / b.abs().max().clamp(min=1.0)) for a, b in zip(one, other, strict=True)]


def check(found: list[Tensor], exact: list[Tensor]) -> None:
    output, *gradients = apart(found, exact)
    assert output < 1e-6
    assert max(gradients) < 2e-6


SHAPES = {"one group a head": (4, 4, 16, 16), "grouped": (4, 2, 16, 16), "latent": (4, 4, 24, 16)}


@pytest.mark.parametrize("window", [None, 3, 50, 1000])
@pytest.mark.parametrize("lengths", SETS.values(), ids=SETS)
def test_tables_are_the_dense_mask(lengths: Any, window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    packing, mask = packing_of(lengths), dense(lengths, window)
    monkeypatch.setattr(layouts, "WINDOW_BLOCK", 32)
    for shape in SHAPES.values():
        call = Call(scale=0.3, window=window)
        exact = attended(Dense(mask), len(mask), shape, call)
        for least in (0, 2**40):  # rows whole, and prompts once where that is less work
            monkeypatch.setattr(layouts, "MOST_MASK", least)
            check(attended(SdpaLayout(packing), len(mask), shape, call), exact)


def test_the_cheaper_table_is_taken() -> None:
    """Long completions are computed behind copies of their prompt, without a mask; a long prompt is computed once."""
    assert SdpaLayout(packing_of(ACROSS))._tables is None
    once = SdpaLayout(packing_of(LONG_PROMPT))._tables
    assert once is not None
    assert once.bias(torch.float32).shape == (1, 1, 8, 158)  # one prompt: the same for all rows
    assert layouts._takes_whole_rows(packing_of(((32000, (700,)),)))  # a single row never has a mask
    many = packing_of(((6000, (300,) * 40), (5999, (300,) * 40)))  # 80 x 300 x 6300 x 4 bytes are too many
    assert layouts._takes_whole_rows(many)


@pytest.mark.parametrize("lengths", SETS.values(), ids=SETS)
def test_tokens_are_those_of_the_lengths(lengths: Any) -> None:
    tokens, at = Tokens.of(packing_of(lengths)), torch.arange(len(dense(lengths)))
    for window in (None, 3, 50):
        assert torch.equal(tokens.visible(at[:, None], at[None, :], window), dense(lengths, window))


@pytest.mark.parametrize("window", [None, 40])
def test_blocks_are_torchs_own(window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = Tokens.of(packing_of(ACROSS))
    length = len(tokens.group_L)
    assert length > 2 * BLOCK
    monkeypatch.setattr(blocks, "_STRIP", 1)  # a block of queries at a time
    ours = block_mask(tokens, window)
    theirs = torch_flex.create_block_mask(ours.mask_mod, None, None, length, length, device="cpu")
    assert torch.equal(ours.to_dense(), theirs.to_dense())
    for name in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name))
    assert ours.shape == theirs.shape
    seen = dense(ACROSS, window)
    rows = [
        (seen[a : a + BLOCK, b : b + BLOCK].any()) for a in range(0, length, BLOCK) for b in range(0, length, BLOCK)
    ]
    assert int(ours.to_dense().sum()) == sum(rows) < len(rows)  # blocks in which nothing is visible are skipped


@pytest.mark.usefixtures("differentiable")
@pytest.mark.parametrize(
    ("lengths", "window", "shape"),
    [
        (ACROSS, None, "grouped"),
        (ACROSS, 40, "grouped"),
        (SHORT, 3, "one group a head"),
        (NOTHING_BEHIND, None, "latent"),
    ],
)
def test_flex_is_the_dense_mask(lengths: Any, window: int | None, shape: str) -> None:
    packing, mask, call = packing_of(lengths), dense(lengths, window), Call(scale=0.3, window=window)
    exact = attended(Dense(mask), len(mask), SHAPES[shape], call)
    check(attended(FlexLayout(packing), len(mask), SHAPES[shape], call), exact)
    if lengths is not SHORT:
        return
    # Canaries: rows that continue the other prompt; a window one position too wide.
    for wrong in (
        FlexLayout(replace(packing, prompt_of_B=1 - packing.prompt_of_B)),
        Shifted(FlexLayout(packing)),
    ):
        assert apart(attended(wrong, len(mask), SHAPES[shape], call), exact)[0] > 1e-3


class Shifted:
    """A layout whose windows are one position too wide."""

    def __init__(self, layout: FlexLayout) -> None:
        self.layout = layout

    def attend(self, query: Tensor, key: Tensor, value: Tensor, call: Call) -> Tensor:
        assert call.window is not None
        return self.layout.attend(query, key, value, replace(call, window=call.window + 1))


BASE: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "intermediate_size": 48, "vocab_size": 60, "max_position_embeddings": 256, "initializer_range": 0.2,
}  # fmt: skip
EXPERTS: dict[str, Any] = {"moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "dense": ("qwen3", {}),
    "experts": ("qwen3_moe", EXPERTS),
    "latent attention": (
        "deepseek_v3",
        {"moe_intermediate_size": 24, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1,
         "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, "kv_lora_rank": 16, "q_lora_rank": 24,
         "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16, "num_key_value_heads": 4, "head_dim": 8},
    ),
    "windows": ("mistral", {"sliding_window": 6}),
    "windows and whole layers": (
        "gemma3_text", {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]},
    ),
}  # fmt: skip


def made(name: str, **changed: Any) -> Any:
    family, more = FAMILIES[name]
    torch.manual_seed(3)
    config = AutoConfig.for_model(family, **(BASE | more | changed))
    return AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION).train()


def learnt(model: Any, batch: Batch) -> list[Tensor]:
    """Loss and gradients of our objective."""
    model.zero_grad()
    loss = PolicyGradientLoss(spec=ObjectiveSpec(correction="none"))(Models(policy=model), batch).loss
    loss.backward()
    return [loss.detach(), *(one.grad for one in model.parameters() if one.grad is not None)]


def batch_of(lengths: Any) -> Batch:
    batch = pack(samples(lengths), 0, CPU)
    before = torch.full_like(batch.sampler_logprobs_BT, -3.0)
    rows = torch.linspace(-1.0, 2.0, len(before))[:, None].expand_as(before)
    count = float(batch.loss_mask_BT.sum())
    return replace(batch, sampler_logprobs_BT=before, advantages_BT=rows, weights_BT=torch.full_like(before, 1 / count))


@pytest.mark.usefixtures("differentiable")
@pytest.mark.parametrize("name", FAMILIES)
def test_whole_models_learn_the_same_by_flex(name: str) -> None:
    model, batch = made(name), batch_of(SHORT)
    assert takes_packed(model)
    exact = learnt(model, batch)
    assert max(float(one.abs().max()) for one in exact[1:]) > 1e-3
    model.config._attn_implementation = attention._NAMES["flex"]
    assert batch.packing is not None
    assert isinstance(layout_of(model, batch.packing), FlexLayout)
    assert max(apart(learnt(model, batch), exact)) < 5e-6
    checkpoint_activations(model)
    assert max(apart(learnt(model, batch), exact)) < 5e-6


@pytest.mark.parametrize("name", ["windows", "windows and whole layers"])
def test_windows_are_those_of_whole_rows(name: str) -> None:
    """transformers' own mask over whole rows, of which the longest are three windows long."""
    model, lengths = made(name), ((9, (8, 12)), (3, (17,)))
    batch = batch_of(lengths)
    packed = learnt(model, batch)
    whole = []
    for sample, advantage, weight in zip(samples(lengths), batch.advantages_BT, batch.weights_BT, strict=True):
        ids, start = torch.as_tensor(sample.token_ids)[None], sample.prompt_length
        logits = model(input_ids=ids[:, :-1]).logits.log_softmax(-1)
        chosen = logits.gather(-1, ids[:, 1:, None])[0, start - 1 :, 0]
        whole.append(-(chosen - chosen.detach()).exp().mul(advantage[0] * weight[0]).sum())
    model.zero_grad()
    loss = torch.stack(whole).sum()
    loss.backward()
    exact = [loss.detach(), *(one.grad for one in model.parameters() if one.grad is not None)]
    assert max(apart(packed, exact)) < 1e-5


def test_layers_that_hide_their_window_are_not_packed() -> None:
    model = made("windows")
    for layer in model.model.layers:
        layer.self_attn.config = AutoConfig.for_model("mistral", **BASE, sliding_window=None)
        layer.self_attn.config._attn_implementation = ATTENTION
    assert not takes_packed(model)
    chunked = made("dense")
    assert plain_head(chunked) is not None
    chunked.config.layer_types = ["chunked_attention", "full_attention"]
    assert not takes_packed(chunked)


def test_ways_and_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = made("dense"), batch_of(SHORT)
    assert batch.packing is not None
    assert isinstance(layout_of(model, batch.packing), SdpaLayout)  # "auto" on a CPU
    set_attention(model, "sdpa", CPU)
    assert takes_packed(model)
    assert isinstance(layout_of(model, batch.packing), SdpaLayout)
    with pytest.raises(UsageError, match=r'"flex" needs a GPU.*no backward pass on a CPU; use "auto"'):
        set_attention(model, "flex", CPU)
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(attention, "has_triton", lambda: False)
    with pytest.raises(UsageError, match="needs Triton"):
        set_attention(model, "flex", gpu)
    monkeypatch.setattr(attention, "has_triton", lambda: True)
    for small in (made("dense", head_dim=8), made("latent attention", v_head_dim=8)):
        with pytest.raises(UsageError, match="heads of 16 numbers"):
            set_attention(small, "flex", gpu)
    set_attention(model, "flex", gpu)
    assert takes_packed(model)
    with pytest.raises(UsageError, match="no dropout"):
        FlexLayout(batch.packing).attend(*[torch.zeros(1, 1, 1, 16)] * 3, Call(scale=1.0, dropout=0.1))
    with pytest.raises(UsageError, match="attention sinks"):
        attention.attend(model, *[torch.zeros(1, 1, 1, 16)] * 3, None, s_aux=torch.zeros(1))


def test_the_recipes_way_reaches_the_models() -> None:
    def trained(way: AttentionWay) -> LocalTrainer:
        policy = Policy(model=made("dense"), tokenizer=character_tokenizer("ab"))
        options = TrainerOptions(optimizer=OptimizerConfig(), total_steps=1, attention=way)
        return LocalTrainer(policy, options, reference=True)

    with pytest.raises(UsageError, match="needs a GPU"):
        trained("flex")
    trainer = trained("sdpa")
    assert trainer.model.config._attn_implementation == attention._NAMES["sdpa"]
    ours, reference = (trainer.logprobs(samples(SHORT), of=one) for one in ("policy", "reference"))  # type: ignore[arg-type]
    assert all((one == other).all() for one, other in zip(ours, reference, strict=True))


#: As ``samples`` takes them: packings of different lengths and numbers of blocks.
MANY = [[(20, (30,))], [(100, (100, 3))], [(50, (90, 90))], [(33, (21,)), (9, (9,))]]


def test_new_lengths_do_not_use_up_what_torch_compiles() -> None:
    """torch compiles a function eight times and then has every score in memory, with a warning once."""
    compiles: list[int] = []

    def counted(graph: Any, _inputs: Any) -> Any:
        compiles.append(1)
        return graph.forward

    def called(compute: Any, lengths: Any) -> None:
        layout = FlexLayout(packing_of(lengths))
        length = len(layout._tokens.group_L)
        query, key, value = (torch.randn(1, heads, length, 16) for heads in (4, 2, 2))
        for gradients, window in ((True, None), (False, None), (True, 16), (False, 16)):
            with torch.set_grad_enabled(gradients):
                compute(query, key, value, block_mask=layout._mask(window), enable_gqa=True)

    for lengths in MANY:
        called(blocks.compiled(counted), lengths)
    before = len(compiles)
    for more in (7, 40, 77):
        called(blocks.compiled(counted), [(50 + more, (90, 90 + more))])
    assert len(compiles) <= before + 4  # of three blocks and of four
    # Canary: past the limit is an error, not the way without a kernel.
    few = torch.compile(
        torch_flex.flex_attention, fullgraph=True, recompile_limit=1, isolate_recompiles=True, backend=counted
    )
    with pytest.raises(FailOnRecompileLimitHit):
        called(few, MANY[0])
    torch._dynamo.reset()
