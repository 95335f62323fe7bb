"""What one GPU of a kind has: memory and peaks by its vendor's data sheet. Stdlib only."""

from __future__ import annotations

from dataclasses import dataclass

#: Bytes/s from one GPU to another host: a network adapter of 400 Gbit/s for each GPU, as DGX H100 hosts have.
NETWORK = 50e9
#: GPUs of one host.
HOST = 8


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU in the units of data sheets. No program reaches the peaks."""

    name: str
    #: GB of 10^9 bytes, as sold; the driver shows a little more.
    gigabytes: float
    #: Dense bfloat16 products with float32 sums, TFLOP/s. Sheets often give twice that, with sparsity.
    teraflops: float
    #: TB/s of its own memory.
    terabytes_per_second: float
    #: GB/s to another GPU of the same host, in one direction.
    link_gigabytes: float
    #: Where the numbers stand.
    source: str

    @property
    def memory(self) -> float:
        """Bytes."""
        return self.gigabytes * 1e9

    @property
    def flops(self) -> float:
        """FLOP/s in bfloat16."""
        return self.teraflops * 1e12

    @property
    def bandwidth(self) -> float:
        """Bytes/s of its own memory."""
        return self.terabytes_per_second * 1e12

    def link(self, gpus: int) -> float:
        """Bytes/s between ``gpus`` of them: the network's where they don't fit one host."""
        return self.link_gigabytes * 1e9 if gpus <= HOST else min(NETWORK, self.link_gigabytes * 1e9)


#: By the name that `rlreason plan --gpu` takes.
GPUS = {
    one.name: one
    for one in (
        Gpu("a100", 80, 312, 2.039, 300, "NVIDIA A100 80GB SXM data sheet"),
        Gpu("a100-40", 40, 312, 1.555, 300, "NVIDIA A100 40GB SXM data sheet"),
        Gpu("h100", 80, 989, 3.35, 450, "NVIDIA H100 SXM data sheet (1,979 TFLOPS with sparsity)"),
        Gpu("h200", 141, 989, 4.8, 450, "NVIDIA H200 SXM data sheet (1,979 TFLOPS with sparsity)"),
        Gpu("b200", 180, 2250, 7.7, 900, "NVIDIA HGX B200 data sheet (8: 36 PFLOPS with sparsity, 1.4 TB, 62 TB/s)"),
        Gpu("mi300x", 192, 1307, 5.3, 64, "AMD Instinct MI300X data sheet (64 GB/s a link in one direction)"),
        Gpu("l40s", 48, 362, 0.864, 32, "NVIDIA L40S data sheet (733 TFLOPS with sparsity; PCIe)"),
        Gpu("l4", 24, 121, 0.3, 32, "NVIDIA L4 data sheet (242 TFLOPS with sparsity; PCIe)"),
        Gpu("rtx4090", 24, 165, 1.008, 32, "NVIDIA Ada GPU architecture paper (330 TFLOPS with sparsity; PCIe)"),
    )
}


def named(name: str) -> Gpu | None:
    """By the name that a driver or Ray has for it, such as "NVIDIA H100 80GB HBM3" or "A100 A100-80G"; None: it is not
    known, or a part of one (MIG). An A100 that does not say its memory is the smaller one."""
    words = {part for word in name.lower().split() for part in word.split("-")}
    if "mig" in words:
        return None
    if "a100" in words:
        return GPUS["a100" if words & {"80gb", "80g"} else "a100-40"]
    if {"rtx", "4090"} <= words:
        return GPUS["rtx4090"]
    return next((GPUS[one] for one in words if one in GPUS), None)
