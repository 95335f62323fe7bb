"""Sampling engines behind ``rlreason.types.Sampler``."""
