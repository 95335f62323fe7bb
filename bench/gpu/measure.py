"""Time, memory, launches and synchronisations of calls on a CUDA device; wall time alone on the CPU (``--smoke``)."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

#: Written before each timed call: larger than any L2 cache, so that inputs come from memory.
_FLUSH_BYTES = 256 * 2**20


@dataclass(slots=True)
class Way:
    """One implementation on fixed inputs. ``call`` returns (value, gradients): what the gate compares."""

    name: str
    call: Callable[[], tuple[torch.Tensor, ...]]
    #: Whether it is ours: then the gate is strict, and a synchronisation with the host is an error.
    ours: bool = False
    note: str = ""


def interleaved(ways: Sequence[Way], rounds: int, device: torch.device) -> list[dict[str, object]]:
    """Each way once per round, in turn. A way that fails (out of memory, not compilable) says so and is left out."""
    rows: list[dict[str, object]] = []
    running: list[tuple[Way, dict[str, object], list[float]]] = []
    for way in ways:
        row: dict[str, object] = {"way": way.name, "note": way.note}
        rows.append(row)
        try:
            for _ in range(3):
                way.call()
            row.update(_once(way, device))
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            row["failed"] = str(error).splitlines()[0][:200]
            _forget(device)
            continue
        running.append((way, row, []))
    flush = torch.empty(_FLUSH_BYTES if device.type == "cuda" else 1, dtype=torch.int8, device=device)
    for _ in range(rounds):
        for way, _row, times in running:
            flush.zero_()
            times.append(_timed(way, device))
    for _way, row, times in running:
        quarters = statistics.quantiles(times, n=4)
        row.update(ms_median=statistics.median(times), ms_quartiles=[quarters[0], quarters[2]], rounds=rounds)
    return rows


def _timed(way: Way, device: torch.device) -> float:
    """Milliseconds, from before the first launch to after the last."""
    if device.type != "cuda":
        began = time.perf_counter()
        way.call()
        return 1e3 * (time.perf_counter() - began)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    way.call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def _once(way: Way, device: torch.device) -> dict[str, object]:
    """What is the same in each run: memory over the inputs, launches, device time, synchronisations."""
    if device.type != "cuda":
        return {}
    _forget(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    way.call()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        way.call()
        torch.cuda.synchronize(device)
    on_device = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    launches = [event for event in on_device if not event.name.startswith(("Memcpy", "Memset"))]
    return {
        "peak_mib": peak / 2**20,
        "launches": len(launches),
        "device_ms": sum(event.device_time for event in on_device) / 1e3,
        "synchronises": _synchronises(way, device),
    }


def _synchronises(way: Way, device: torch.device) -> str:
    """ "no", or what waited for the device first."""
    torch.cuda.synchronize(device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        way.call()
    except RuntimeError as error:
        if way.ours:
            raise SystemExit(f"{way.name} waits for the device: {error}") from error
        return str(error).splitlines()[0][:120]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "no"


def _forget(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
