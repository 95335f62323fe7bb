"""Rewards from outside: ``pkg.mod:fn``, ``path/file.py:fn``, functions written for TRL, verl or OpenRLHF, HTTP servers
and reward models."""

from __future__ import annotations

from rlreason.rewards.plugins.adapted import Adapted, Per
from rlreason.rewards.plugins.loading import FILE_PACKAGE, adapted, load, module_file
from rlreason.rewards.plugins.names import Target, parse

__all__ = ["FILE_PACKAGE", "Adapted", "Per", "Target", "adapted", "load", "module_file", "parse"]
