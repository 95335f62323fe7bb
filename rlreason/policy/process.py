"""How a process that trains or samples uses its CPU: set once, before the first tensor."""

from __future__ import annotations

import ctypes
import sys

import torch

#: glibc's mallopt parameters.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_MIB = 1 << 20


def prepare_process() -> None:
    """One torch thread per operation, and freed memory kept for the next tensor.

    Micro-batches and batches of completions run side by side instead (``microbatches.py``).
    """
    torch.set_num_threads(1)
    keep_freed_memory()


def keep_freed_memory() -> bool:
    """Have glibc reuse freed blocks of up to 32 MiB (its own limit) instead of returning them to the system; returns
    whether it is glibc and agreed.

    A training step frees and takes the same sizes again and again. By default each block over 128 KiB is a fresh
    mapping whose pages the system clears one fault at a time, and threads wait for each other there.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # absent from musl
    if mallopt is None:
        return False
    settings = {_MMAP_THRESHOLD: 32 * _MIB, _TRIM_THRESHOLD: 1024 * _MIB, _TOP_PAD: 64 * _MIB}
    done = [mallopt(name, value) == 1 for name, value in settings.items()]
    return all(done)


def return_freed_memory() -> None:
    """Give the system back what was freed and kept: the next stage takes other sizes, and would keep its own beside."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is not None:
        trim(0)
