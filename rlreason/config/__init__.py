"""The recipe: its schema, loading a TOML file, `key=value` overrides, what may change when a run goes on."""

from rlreason.config.data import CurriculumConfig, DataChoice, DataConfig, DataSetConfig, Scalar
from rlreason.config.engine import ClusterConfig, EndpointConfig, SamplerConfig, Section, TrainerConfig
from rlreason.config.grpo import GrpoStage
from rlreason.config.health import HealthConfig
from rlreason.config.load import load, locate, recipe_toml, recipes_folder, shipped_recipes, trace_filters
from rlreason.config.logging import LoggingConfig, RolloutLog
from rlreason.config.opd import OpdStage, TeacherConfig
from rlreason.config.recipe import (
    DistillStage,
    EvalStage,
    PolicyConfig,
    Recipe,
    RejectStage,
    SftStage,
    Stage,
    TokenizerConfig,
)
from rlreason.config.reward_terms import ACCURACY, RewardTable, RewardTerm
from rlreason.config.traces import Decontamination, Difficulty, TraceFilters
from rlreason.config.training import MICRO_BATCH, OptimizerConfig, SupervisedStage, TrainingStage, stage_of

__all__ = [
    "ACCURACY",
    "MICRO_BATCH",
    "ClusterConfig",
    "CurriculumConfig",
    "DataChoice",
    "DataConfig",
    "DataSetConfig",
    "Decontamination",
    "Difficulty",
    "DistillStage",
    "EndpointConfig",
    "EvalStage",
    "GrpoStage",
    "HealthConfig",
    "LoggingConfig",
    "OpdStage",
    "OptimizerConfig",
    "PolicyConfig",
    "Recipe",
    "RejectStage",
    "RewardTable",
    "RewardTerm",
    "RolloutLog",
    "SamplerConfig",
    "Scalar",
    "Section",
    "SftStage",
    "Stage",
    "SupervisedStage",
    "TeacherConfig",
    "TokenizerConfig",
    "TraceFilters",
    "TrainerConfig",
    "TrainingStage",
    "load",
    "locate",
    "recipe_toml",
    "recipes_folder",
    "shipped_recipes",
    "stage_of",
    "trace_filters",
]
