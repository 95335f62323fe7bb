"""Triton kernels of this room, with the signatures of its torch functions. ``objective.dispatch`` chooses.

Nothing here is imported before a CUDA tensor asks for it: Triton is no requirement of the base install. Every kernel
is proved without a GPU in Triton's interpreter and compiled for Hopper by ``tests/objective/test_kernels.py``.

Rules they share: 1-D grids and int64 offsets (no 65,535 limit, N·V may exceed 2³¹); each program writes its own
partial sums, a last launch adds them in index order, so there are no atomics and two runs agree bit for bit; no host
synchronisation; a recipe's numbers are compile-time constants, one build per objective.
"""
