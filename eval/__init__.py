"""Evaluation: suites, intervals, pass@k, comparison of runs. Imports types and rewards, never stages."""

if __name__ != "rlreason.eval":
    raise ImportError("import rlreason.eval, not eval: one module, one name")
