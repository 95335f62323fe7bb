"""Objectives: advantages, ratios, clipping, KL and aggregation as pure functions of tensors."""
