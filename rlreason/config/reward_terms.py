"""Rewards by name with their weights, as ``[reward]`` and a stage's own ``reward`` have them."""

from __future__ import annotations

from rlreason.config.data import Scalar
from rlreason.config.secret import FromEnvironment, OptionTable

RewardOption = Scalar | FromEnvironment | list[Scalar | list[Scalar]] | OptionTable
RewardTerm = float | dict[str, RewardOption]
RewardTable = dict[str, RewardTerm]
#: The reward of a recipe that names none.
ACCURACY: RewardTable = {"accuracy": 1.0}
