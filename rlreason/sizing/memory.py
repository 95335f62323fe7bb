"""Memory of one GPU (or process) while a model trains, by part, in bytes.

P = parameters that train, F = frozen ones, N = ranks (1 without shards), d = bytes of the compute dtype. The parts are
those of ``trainer.masters`` (one process) and ``trainer.sharding`` (FSDP2 over N ranks):

- weights: float32 masters 4 P / N, frozen weights d F / N;
- gradients 4 P / N, moments 8 P / N;
- one process in bfloat16: the copy that computes, 2 P;
- micro-batches' gradients before they are added, d P: of one in turn, with M threads on a CPU of M + 1;
- shards: what is gathered whole in the compute dtype, d (two layers + all outside of layers), and whole gradients on
  their way to being added in float32: of one layer d + 4, of what is outside of layers d or d + 4; a layer of ranks
  that share it is (all but experts) / t + experts / e (``trainer.parallel``; t tensor, e expert ranks);
- reference d P / N and teacher d T / N;
- activations: counted (``sizing.activations``); head: the buffers of ``objective.linear`` and its kernel.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlreason.sizing.activations import Activations, MicroBatch
from rlreason.sizing.cut import ALONE, Cut
from rlreason.sizing.shape import ModelShape

#: ``objective.kernels.linear._TILE_ROWS`` and ``objective.linear._TILE``, which tests hold these to.
GPU_TILE_ROWS = 2048
CPU_TILE, CPU_BLOCK = 40_000_000, 1 << 17
#: Tables of whole float32 logits that are held at a time of a head that is no plain product
#: (tests/sizing/test_memory.py counts them).
WHOLE_LOGITS = 4
#: oneDNN's scratch memory of a product in bfloat16.
PRODUCT_SPACE = 1 << 18
#: ``objective.distillation.head``: rows of its two tiles, and bytes of the blocks in which they become gradients.
TEACHER_TILE_ROWS, TEACHER_BLOCKS = 1024, 16 * 4 * (1 << 17)


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How a model trains, as far as memory goes."""

    #: Bytes of the compute dtype.
    width: int
    cut: Cut = ALONE
    offload: bool = False
    #: Parameters of the adapter; None: all weights train.
    adapter: int | None = None
    reference: bool = False
    #: Parameters of a teacher whose distribution is learnt, and rows of its head.
    teacher: int = 0
    #: What a teacher says is learnt, wherever it is: the loss is a divergence, made in tiles of logits.
    tiles: bool = False
    on_gpu: bool = True
    #: Of a CPU, each on a micro-batch of its own.
    threads: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One line of a budget."""

    name: str
    bytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """A budget: of the device, and what was moved to its host's memory."""

    parts: tuple[Part, ...]
    host: float = 0.0

    @property
    def total(self) -> float:
        """Bytes of the device."""
        return sum(part.bytes for part in self.parts)

    def of(self, name: str) -> float:
        """Bytes of one part; 0 where there is none."""
        return sum(part.bytes for part in self.parts if part.name == name)


def training_memory(shape: ModelShape, training: Training, batch: MicroBatch, activations: Activations) -> Memory:
    """The budget of one step with micro-batches such as ``batch``."""
    width, shards = training.width, training.cut.shards
    trained = shape.total if training.adapter is None else training.adapter
    frozen = 0 if training.adapter is None else shape.total
    stored = [
        Part(name="weights", bytes=(4 * trained + width * frozen) / shards),
        Part(name="gradients", bytes=4 * trained / shards),
        Part(name="moments", bytes=8 * trained / shards),
    ]
    held = []
    if training.cut.ranks:
        held.append(Part(name="gathered", bytes=_gathered(shape, training)))
    else:
        if width == 2:
            held.append(Part(name="bfloat16 copy", bytes=2 * trained))
        waiting = _waiting(training)
        if waiting:
            held.append(Part(name="gradients of micro-batches", bytes=waiting * width * trained))
    if training.reference and training.adapter is None:
        stored.append(Part(name="reference", bytes=width * shape.total / shards))
    if training.teacher:
        stored.append(Part(name="teacher", bytes=width * training.teacher / shards))
    head = head_memory(shape, training, batch)
    running = max(activations.peak, activations.kept + head)
    held.append(Part(name="activations", bytes=training.threads * activations.kept))
    held.append(Part(name="head and work space", bytes=training.threads * (running - activations.kept)))
    if training.offload:
        return Memory(parts=tuple(held), host=sum(part.bytes for part in stored))
    return Memory(parts=(*stored, *held))


def _waiting(training: Training) -> int:
    """Sets of gradients that are not added yet (``trainer.microbatches``): a GPU adds float32 ones where they are."""
    if training.on_gpu:
        return int(training.width == 2)
    return 1 if training.threads == 1 else training.threads + 1


def _gathered(shape: ModelShape, training: Training) -> float:
    """FSDP2 computes one layer while it gathers the next, and the root (embedding, norm, head) stays gathered."""
    width, layer, root = training.width, training.cut.layer(shape), shape.outside
    whole = width * (2 * layer + root)
    if training.adapter is not None:  # gradients of adapters are small
        return whole
    return whole + width * root + max((width + 4) * layer, 4 * root)


def head_memory(shape: ModelShape, training: Training, batch: MicroBatch) -> float:
    """What the head holds while it computes its loss. Whole logits are only made of heads that scale or cap them."""
    rows, vocabulary, hidden = batch.loss_rows, shape.vocabulary, shape.hidden
    width, narrow = training.width, training.width != 4
    if not shape.plain_head:
        return WHOLE_LOGITS * 4 * batch.rows * (batch.prompt + batch.completion - 1) * vocabulary
    trains = training.adapter is None
    weight_gradient = shape.head * (4 + (width if narrow else 0)) if trains else 0
    # On a CPU the gradient of a tile of logits in bfloat16, its products, and what they are computed with.
    rounded = width if narrow and not training.on_gpu else 0
    weight_gradient += rounded * shape.head if trains else 0
    products = rounded * rows * hidden + PRODUCT_SPACE if rounded else 0
    wide = 4 * shape.head if narrow else 0
    if training.teacher or training.tiles:  # tiles of both models' logits, and the head in float32
        tiles = (2 * 4 + rounded) * min(TEACHER_TILE_ROWS, rows) * vocabulary + TEACHER_BLOCKS
        return tiles + weight_gradient + wide + products + (4 + width) * rows * hidden
    if training.on_gpu:
        tile = 4 * min(GPU_TILE_ROWS, rows) * vocabulary
        return tile + weight_gradient + width * rows * hidden
    elements = min(max(1, CPU_TILE // vocabulary), rows) * vocabulary
    tile = (4 + rounded) * elements + 4 * min(CPU_BLOCK, elements)
    return tile + weight_gradient + wide + products + (4 + 4 + width) * rows * hidden
