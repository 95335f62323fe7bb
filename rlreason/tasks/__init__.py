"""Procedural tasks: problems without end, made from counters. Imports no torch, ray or vllm."""
