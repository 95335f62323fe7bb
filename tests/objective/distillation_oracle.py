"""The definitions of docs/distill.md in float64 with whole logits and autograd; shares no code with the product."""

from __future__ import annotations

import torch
from torch import Tensor


def kl(a: Tensor, b: Tensor) -> Tensor:
    """Σ a (log a − log b) of each row; a word with a = 0 adds nothing."""
    safe = torch.where(a > 0, a, torch.ones_like(a))
    return torch.where(a > 0, a * (safe.log() - b.log()), torch.zeros_like(a)).sum(-1)


def divergence(p: Tensor, q: Tensor, name: str, beta: float = 0.5) -> Tensor:
    if name == "forward":
        return kl(q, p)
    if name == "reverse":
        return kl(p, q)
    middle = beta * q + (1 - beta) * p
    return beta * kl(q, middle) + (1 - beta) * kl(p, middle)


def grouped(p: Tensor, ids: Tensor) -> Tensor:
    """The words ``ids`` of each row, and one word for all others."""
    inside = torch.zeros_like(p).scatter(1, ids, 1.0)
    return torch.cat([p.gather(1, ids), (p * (1 - inside)).sum(1, keepdim=True)], dim=1)


def gradient(z: Tensor, q: Tensor, name: str, beta: float = 0.5, ids: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(value, gradient by the logits) of each row."""
    leaf = z.clone().requires_grad_()
    p = leaf.softmax(-1)
    if ids is not None:
        p, q = grouped(p, ids), grouped(q, ids)
    value = divergence(p, q, name, beta)
    return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]


def pairs(rows: int, words: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(student logits, teacher logits): random, peaked, near one-hot, in turns."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.tensor([1.0, 5.0, 25.0], dtype=torch.float64)[torch.arange(rows) % 3].unsqueeze(1)
    z = torch.randn(rows, words, generator=generator, dtype=torch.float64) * scale
    u = torch.randn(rows, words, generator=generator, dtype=torch.float64) * scale.flip(0)
    return z, u
