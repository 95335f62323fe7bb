"""A recipe's stages as budgets: memory of a GPU, time of a step; and the nearest change where one doesn't fit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, product
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from transformers import PretrainedConfig

from rlreason.cluster.plan import teachers_elsewhere
from rlreason.config import (
    MICRO_BATCH,
    DistillStage,
    EvalStage,
    GrpoStage,
    OpdStage,
    PolicyConfig,
    Recipe,
    RejectStage,
    SftStage,
    TeacherConfig,
)
from rlreason.config.load import allowed
from rlreason.cores import usable_cores, usable_memory
from rlreason.data.run_data import RunData
from rlreason.errors import UsageError
from rlreason.plan.lengths import longest
from rlreason.policy.loading import locate_model, read_config
from rlreason.policy.lora import LoraOptions, add_adapter, is_adapter
from rlreason.policy.model import fresh_config
from rlreason.policy.policies import fresh_tokenizer
from rlreason.policy.support import longest_sequence
from rlreason.sizing import engine as engines
from rlreason.sizing.activations import MicroBatch, count_activations, micro_batch
from rlreason.sizing.cut import Cut, local_config
from rlreason.sizing.gpus import Gpu
from rlreason.sizing.memory import Memory, Training, training_memory
from rlreason.sizing.shape import ModelShape, empty_model, shape_of
from rlreason.stages.references import References
from rlreason.stages.trainers import lora_options
from rlreason.trainer.parallel import check_division

#: Tokens of a prompt, where the recipe says nothing of them: a plan reads no tokenizer.
PROMPT = 256
#: Tokens of a demonstration, where no stage of the recipe says how long answers may be.
ANSWER = 2048
#: Of a GPU's memory: CUDA's context, and what its allocator can't use.
RESERVE = 0.05
#: Of a GPU's memory, and of a CPU's, which samplers and rewards share: what a step with micro-batches of our choice
#: takes at most.
GPU_SHARE, CPU_SHARE = 0.85, 0.5
#: Tokens of a micro-batch at most; larger ones are no faster on a GPU, and on a CPU they leave cores idle: each core
#: computes whole micro-batches.
MOST_TOKENS_GPU, MOST_TOKENS_CPU = 32768, 1024
#: The adapter that is proposed where nothing else fits.
PROPOSED_LORA = LoraOptions(rank=16, alpha=32.0)
#: What configs call the width inside of a feed-forward layer.
_INNER = ("intermediate_size", "moe_intermediate_size")
Trained = SftStage | GrpoStage | DistillStage | OpdStage
#: Stages that draw.
Drawing = GrpoStage | RejectStage | OpdStage


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """The settings that decide what fits."""

    ranks: int
    tensor_parallel: int
    expert_parallel: int
    offload: bool
    checkpointing: bool
    lora: LoraOptions | None
    micro_batch_tokens: int

    @staticmethod
    def of(recipe: Recipe, stage: Trained, tokens: int) -> Setup:
        """As the recipe has them for ``stage``."""
        trainer = recipe.trainer
        return Setup(
            ranks=trainer.ranks,
            tensor_parallel=trainer.tensor_parallel,
            expert_parallel=trainer.expert_parallel,
            offload=trainer.offload,
            checkpointing=trainer.activation_checkpointing,
            lora=lora_options(recipe, stage),
            micro_batch_tokens=tokens,
        )


@dataclass(slots=True)
class Budgets:
    """The budgets of one recipe's stages. ``gpu`` None: of this machine's device, without a limit."""

    recipe: Recipe
    data: RunData
    gpu: Gpu | None = None
    #: GPUs that a trainer may have.
    trainer_gpus: int = 1
    _references: References = field(init=False)
    _configs: dict[str, PretrainedConfig] = field(default_factory=dict, init=False)
    _shapes: dict[str, ModelShape] = field(default_factory=dict, init=False)
    _setups: dict[str, Setup] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._references = References(self.recipe)

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU is planned for."""
        return self.gpu is not None or torch.cuda.is_available()

    @property
    def flex(self) -> bool:
        """Whether packed tokens are planned with flex_attention."""
        return self.on_gpu and self.recipe.trainer.attention != "sdpa"

    def setup(self, stage: Trained) -> Setup:
        """The recipe's settings; where it says no ``micro_batch_tokens``, as many as fit.

        Raises UsageError where the model's size is not known here, and CountingError as ``count_activations`` does.
        """
        if stage.name not in self._setups:
            tokens = stage.micro_batch_tokens or self._tokens_that_fit(stage)
            self._setups[stage.name] = Setup.of(self.recipe, stage, tokens)
        return self._setups[stage.name]

    def _tokens_that_fit(self, stage: Trained) -> int:
        """The most, halved from the cap, whose step fits; where none does, those of one row."""
        tokens, row = (MOST_TOKENS_GPU if self.on_gpu else MOST_TOKENS_CPU), sum(self.rows(stage))
        if self._is_small(stage, tokens):
            return tokens
        while tokens > row and self.memory(stage, Setup.of(self.recipe, stage, tokens)).total > self.room:
            tokens //= 2
        return max(tokens, min(row, MICRO_BATCH))

    def _is_small(self, stage: Trained, tokens: int) -> bool:
        """Whether a model is so small that nothing need be counted: by more than any layer keeps."""
        config: Any = self.config(self.policy_of(stage))
        known = {*config.to_dict(), *config.attribute_map}
        if self.on_gpu or not {"hidden_size", "num_hidden_layers"} <= known:
            return False
        inner = max(
            (int(getattr(config, name) or 0) for name in _INNER if name in known), default=4 * config.hidden_size
        )
        layer = 4 * tokens * (40 * config.hidden_size + 12 * inner)
        threads = self.recipe.cluster.threads or usable_cores()
        return bool(threads * config.num_hidden_layers * layer < self.room / 4)

    @property
    def room(self) -> float:
        """Bytes that a step may take where nothing else was asked for."""
        if self.gpu is not None:
            return GPU_SHARE * self.gpu.memory
        if torch.cuda.is_available():
            return GPU_SHARE * torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        return CPU_SHARE * usable_memory() / max(1, self.recipe.trainer.ranks)

    def width(self, config: PolicyConfig) -> int:
        """Bytes of a number that the model computes with."""
        if config.dtype == "auto":
            return 2 if self.on_gpu else 4
        return {"float32": 4, "bfloat16": 2}[config.dtype]

    def policy_of(self, stage: Trained | RejectStage) -> PolicyConfig:
        """The table of the model that a stage trains or draws with."""
        return self._references.config(self._references.model_of(stage))

    def shape(self, config: PolicyConfig) -> ModelShape:
        """What the model is. Raises UsageError where that can't be known here."""
        key = config.model_dump_json()
        if key not in self._shapes:
            self._shapes[key] = shape_of(empty_model(self.config(config)))
        return self._shapes[key]

    def config(self, policy: PolicyConfig) -> PretrainedConfig:
        """The model's config: its folder's, that of a hub id in the cache, or what the recipe says of it."""
        key = policy.model_dump_json()
        if key not in self._configs:
            self._configs[key] = self._config(policy)
        return self._configs[key]

    def _config(self, policy: PolicyConfig) -> PretrainedConfig:
        if policy.path is None:
            return fresh_config(self._with_vocabulary(policy))
        place = locate_model(policy.path)
        if Path(place).exists():  # a folder, or a .gguf file
            return read_config(place)
        cached = try_to_load_from_cache(place, "config.json")
        if isinstance(cached, str):
            return read_config(Path(cached).parent)
        if {"hidden_size", "num_hidden_layers"} <= policy.model.keys():
            return fresh_config(policy)
        raise UsageError(
            f"the size of {policy.path} is not known: it is not on this machine, and [policy.model] doesn't say "
            "hidden_size, num_hidden_layers and the like"
        )

    def _with_vocabulary(self, policy: PolicyConfig) -> PolicyConfig:
        """A model built from nothing has the rows that its tokenizer will have."""
        if policy.tokenizer.kind == "bpe":
            vocabulary = policy.tokenizer.vocab_size
        else:
            vocabulary = len(fresh_tokenizer(policy, self.data.alphabet, ()))
        return policy.model_copy(update={"model": {"vocab_size": vocabulary, **policy.model}})

    def rows(self, stage: Trained | RejectStage) -> tuple[int, int]:
        """Tokens of (a prompt, an answer at most)."""
        asked = [one.max_tokens for one in self.recipe.stage if isinstance(one, Drawing)]
        asked = asked or [one.max_tokens for one in self.recipe.stage if isinstance(one, EvalStage)]
        answer = stage.max_tokens if isinstance(stage, Drawing) else max(asked, default=ANSWER)
        policy = self.policy_of(stage)
        limit = longest(self.recipe, policy) or longest_sequence(self.config(policy))
        if limit is None:
            return PROMPT, answer
        answer = min(answer, max(2, limit - 1))
        return max(1, min(PROMPT, limit - answer)), answer

    def micro_batch(self, stage: Trained, setup: Setup) -> MicroBatch:
        """The largest micro-batch of the stage, of answers at full length, on a rank that has so many."""
        prompt, answer = self.rows(stage)
        group = stage.samples_per_problem if isinstance(stage, (GrpoStage, OpdStage)) else 1
        found = micro_batch(setup.micro_batch_tokens, prompt, answer, group)
        return replace(found, rows=max(1, min(found.rows, -(-step_rows(stage) // self.cut(stage, setup).rows))))

    def cut(self, stage: Trained, setup: Setup) -> Cut:
        """How the ranks share the stage's model."""
        if setup.expert_parallel > 1 and not self.shape(self.policy_of(stage)).experts:  # a dense one has none
            return Cut(ranks=setup.ranks, tensor=setup.tensor_parallel)
        return Cut(ranks=setup.ranks, tensor=setup.tensor_parallel, experts=setup.expert_parallel)

    def memory(self, stage: Trained, setup: Setup) -> Memory:
        """What one GPU of the trainer holds. Raises UsageError for a model that its ranks can't share so."""
        policy = self.policy_of(stage)
        config, width, batch = self.config(policy), self.width(policy), self.micro_batch(stage, setup)
        dtype = torch.bfloat16 if width == 2 else torch.float32
        cut = self.cut(stage, setup)
        if cut.tensor > 1 or cut.experts > 1:
            check_division(empty_model(config), cut.tensor, cut.experts)
        of_a_rank = local_config(config, cut.tensor)
        activations = count_activations(
            of_a_rank, batch, dtype, checkpointing=setup.checkpointing, lora=setup.lora, flex=self.flex
        )
        training = Training(
            width=width,
            cut=cut,
            offload=setup.offload,
            adapter=None if setup.lora is None else adapter_size(config, setup.lora),
            reference=isinstance(stage, GrpoStage) and stage.objective.kl_coef > 0,
            teacher=self._teacher(stage),
            tiles=isinstance(stage, OpdStage) and stage.advantage == "teacher",
            on_gpu=self.on_gpu,
            threads=1 if self.on_gpu or setup.ranks else self._threads(stage, batch),
        )
        return training_memory(self.shape(policy), training, batch, activations)

    def loading(self, stage: Trained, setup: Setup) -> float:
        """Bytes of the first rank's host while it reads the whole model (``trainer.rank``); 0 without ranks."""
        policy = self.policy_of(stage)
        width = 4 if setup.lora is None else self.width(policy)
        return float(width * self.shape(policy).total) if setup.ranks else 0.0

    def _threads(self, stage: Trained, batch: MicroBatch) -> int:
        """Micro-batches that a CPU computes side by side."""
        return max(1, min(self.recipe.cluster.threads or usable_cores(), step_rows(stage) // batch.rows))

    def _teacher(self, stage: Trained) -> int:
        """Parameters of the teachers that are held beside the policy."""
        if isinstance(stage, OpdStage):
            names = stage.teachers(self.recipe.teacher)
            apart = teachers_elsewhere(self.recipe, float(self.on_gpu))
            held = [name for name in names if name not in apart]
            return sum(self.shape(self.teacher_config(self.recipe.teacher[name])).total for name in held)
        if not isinstance(stage, DistillStage) or not stage.teacher_kl:
            return 0
        return self.shape(self.policy_of(self._references.traces_of(stage))).total

    def teacher_config(self, table: TeacherConfig) -> PolicyConfig:
        """The table of the model that a teacher is, or a table for its folder."""
        return PolicyConfig(path=table.path) if table.model is None else self._references.config(table.model)

    def fits(self, memory: Memory) -> bool:
        """Whether the GPU holds it."""
        assert self.gpu is not None
        return memory.total <= self.gpu.memory * (1 - RESERVE)

    def nearest(self, stage: Trained) -> tuple[tuple[str, ...], Memory] | None:
        """The fewest changes of the recipe with which the stage fits, and what it takes then."""
        changes = list(_changes(self, stage, self.setup(stage)))
        if not changes or not self.fits(self.memory(stage, changes[-1][1])):  # all of them at once
            return None
        for keys, changed in changes:
            memory = self.memory(stage, changed)
            if self.fits(memory) and allowed(self.recipe, keys):
                return keys, memory
        return None

    def engine(self, stage: Drawing, tensor_parallel: int, held: float = 0.0) -> engines.Engine:
        """One GPU of an engine, of whose memory ``held`` bytes are the trainer's."""
        assert self.gpu is not None
        policy, sampler = self.policy_of(stage), self.recipe.sampler
        free = min(self.gpu.memory * sampler.gpu_memory_utilization, self.gpu.memory * (1 - RESERVE) - held)
        prompt, answer = self.rows(stage)
        return engines.engine(
            self.shape(policy),
            free,
            prompt + answer,
            width=self.width(policy),
            tensor_parallel=tensor_parallel,
            most_rows=sampler.max_rows,
        )


def step_rows(stage: Trained) -> int:
    """Completions or demonstrations of one step."""
    if isinstance(stage, (GrpoStage, OpdStage)):
        return stage.problems_per_step * stage.samples_per_problem
    return stage.batch_size


def adapter_size(config: PretrainedConfig, lora: LoraOptions) -> int:
    """Parameters of an adapter of the model. Raises UsageError for targets that it has not."""
    model = empty_model(config)
    add_adapter(model, lora)
    return sum(one.numel() for name, one in model.named_parameters() if is_adapter(name))


def _spreads(budgets: Budgets, stage: Trained, setup: Setup, most: int) -> list[int]:
    """Over how many ranks the experts could be spread, of those that there are or could be; none where they are."""
    policy = budgets.policy_of(stage)
    experts = budgets.shape(policy).experts
    counts = {math.gcd(ranks, experts) for ranks in (setup.ranks, most)} if experts else set()
    counts = {one for one in counts if one > 1 and one % setup.tensor_parallel == 0}
    if not counts or setup.expert_parallel > 1 or setup.lora is not None:
        return []
    try:
        for one in counts:
            check_division(empty_model(budgets.config(policy)), setup.tensor_parallel, one)
    except UsageError:
        return []
    return sorted(counts)


def _changes(budgets: Budgets, stage: Trained, setup: Setup) -> Iterator[tuple[tuple[str, ...], Setup]]:
    """Changes to try, fewest first: what costs least comes first among as many."""
    axes: list[Sequence[tuple[str, dict[str, object]]]] = []
    if not setup.checkpointing:
        axes.append([("trainer.activation_checkpointing=true", {"checkpointing": True})])
    one_row = sum(budgets.rows(stage))
    smaller = sorted({setup.micro_batch_tokens // 4, one_row}, reverse=True)
    key = f"stage.{stage.name}.micro_batch_tokens"
    tokens = [one for one in smaller if one_row <= one < setup.micro_batch_tokens]
    if tokens:
        axes.append([(f"{key}={one}", {"micro_batch_tokens": one}) for one in tokens])
    together = math.lcm(setup.tensor_parallel, setup.expert_parallel)
    most = budgets.trainer_gpus // together * together
    if setup.ranks < most:
        axes.append([(f"trainer.ranks={most}", {"ranks": most})])
    spread = _spreads(budgets, stage, setup, max(most, setup.ranks))
    if spread:
        axes.append([(f"trainer.expert_parallel={one}", {"expert_parallel": one}) for one in spread])
    if setup.lora is None and together == 1:
        known = lora_options(budgets.recipe, stage.model_copy(update={"lora": True}))
        key = "trainer.lora.rank=16" if known is None else f"stage.{stage.name}.lora=true"
        axes.append([(key, {"lora": known or PROPOSED_LORA})])
    if not setup.offload:
        axes.append([("trainer.offload=true", {"offload": True})])
    for count in range(1, len(axes) + 1):
        for chosen in combinations(axes, count):
            for one in product(*chosen):
                names = tuple(name for name, _ in one)
                values: dict[str, object] = {name: value for _, change in one for name, value in change.items()}
                changed = replace(setup, **values)  # type: ignore[arg-type]
                if changed.offload and not changed.ranks:  # one shard is enough to offload
                    names, changed = (*names, "trainer.ranks=1"), replace(changed, ranks=1)
                yield names, changed
