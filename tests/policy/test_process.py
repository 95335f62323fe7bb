"""A training process keeps the memory it freed."""

from __future__ import annotations

import subprocess
import sys

import pytest

#: Two threads, each taking 40 tensors of 1 to 8 MB and then giving all back, as a micro-batch does with activations.
PROGRAM = """
import resource, sys
from concurrent.futures import ThreadPoolExecutor
import torch
from rlreason.policy.process import keep_freed_memory
torch.set_num_threads(1)
if sys.argv[1] == "kept":
    assert keep_freed_memory()
def micro_batch(_):
    kept = [torch.ones(250_000 * (1 + i % 8)) for i in range(40)]
    return sum(float(x[0]) for x in kept)
with ThreadPoolExecutor(2) as pool:
    for step in range(20):
        if step == 10:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        assert list(pool.map(micro_batch, range(2))) == [40.0, 40.0]
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_freed_memory_is_reused_without_page_faults() -> None:
    def faults(kind: str) -> int:
        done = subprocess.run([sys.executable, "-c", PROGRAM, kind], capture_output=True, text=True, check=True)
        return int(done.stdout)

    kept, as_it_is = faults("kept"), faults("as it is")
    print(kept, as_it_is)
    assert kept < as_it_is / 5
