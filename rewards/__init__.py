"""Rewards and verifiers. Pure Python: importing this loads no torch, ray, vllm or transformers."""

if __name__ != "rlreason.rewards":
    raise ImportError("import rlreason.rewards, not rewards: one module, one name")
