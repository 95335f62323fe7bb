"""A training process keeps the memory it freed, until another stage begins."""

from __future__ import annotations

import subprocess
import sys

import pytest

#: Takes 40 blocks of 1 MB, writes to all, and gives all back, as a micro-batch does with its activations.
PROGRAM = """
import ctypes, resource, sys
from rlreason.policy.process import keep_freed_memory
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
if sys.argv[1] == "kept":
    assert keep_freed_memory()
size, blocks = 1_000_000, [0] * 40
for step in range(12):
    if step == 4:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for at in range(40):
        blocks[at] = libc.malloc(size)
        libc.memset(blocks[at], 1, size)
    for at in reversed(range(40)):
        libc.free(blocks[at])
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_freed_memory_is_reused_without_page_faults() -> None:
    def faults(kind: str) -> int:
        done = subprocess.run([sys.executable, "-c", PROGRAM, kind], capture_output=True, text=True, check=True)
        return int(done.stdout)

    kept, as_it_is = faults("kept"), faults("as it is")
    assert as_it_is > 8 * 40 * 100  # 8 steps, 244 pages a block: most of them are cleared anew each time
    assert kept < as_it_is / 100


#: Resident bytes with 64 blocks of 1 MB, once they are freed, and once they were given back.
RESIDENT = """
import ctypes
from rlreason.policy.process import keep_freed_memory, return_freed_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

assert keep_freed_memory()
blocks = [bytearray(1_000_000) for _ in range(64)]
for block in blocks:
    block[::4096] = bytes([1]) * len(block[::4096])
found = [resident()]
last = bytearray(1_000_000)  # above them: the heap's end alone would be given back
del blocks, block
found.append(resident())
return_freed_memory()
print(*found, resident())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_what_was_kept_is_given_back_when_asked() -> None:
    done = subprocess.run([sys.executable, "-c", RESIDENT], capture_output=True, text=True, check=True)
    held, freed, given_back = map(int, done.stdout.split())
    assert held - freed < 8e6  # the canary: freed alone, they stay
    assert held - given_back > 56e6
