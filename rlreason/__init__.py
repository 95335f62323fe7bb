"""rlreason: R1-style reasoning training, from a 2-core laptop to a GPU cluster.

Kept light on purpose: importing a room such as ``rlreason.rewards`` must not load torch, ray or vllm.
"""

__version__ = "0.1.0"
