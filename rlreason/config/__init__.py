"""The recipe: its schema, loading a TOML file, `key=value` overrides, what may change when a run goes on."""

from rlreason.config.data import CurriculumConfig, DataChoice, DataConfig, DataSetConfig, Scalar
from rlreason.config.engine import ClusterConfig, EndpointConfig, SamplerConfig, Section, TrainerConfig
from rlreason.config.health import HealthConfig
from rlreason.config.load import load, locate, recipe_toml, recipes_folder, shipped_recipes
from rlreason.config.logging import LoggingConfig, RolloutLog
from rlreason.config.recipe import (
    ACCURACY,
    DistillStage,
    EvalStage,
    GrpoStage,
    OptimizerConfig,
    PolicyConfig,
    Recipe,
    RejectStage,
    RewardTerm,
    SftStage,
    Stage,
    TokenizerConfig,
    TrainingStage,
)

__all__ = [
    "ACCURACY",
    "ClusterConfig",
    "CurriculumConfig",
    "DataChoice",
    "DataConfig",
    "DataSetConfig",
    "DistillStage",
    "EndpointConfig",
    "EvalStage",
    "GrpoStage",
    "HealthConfig",
    "LoggingConfig",
    "OptimizerConfig",
    "PolicyConfig",
    "Recipe",
    "RejectStage",
    "RewardTerm",
    "RolloutLog",
    "SamplerConfig",
    "Scalar",
    "Section",
    "SftStage",
    "Stage",
    "TokenizerConfig",
    "TrainerConfig",
    "TrainingStage",
    "load",
    "locate",
    "recipe_toml",
    "recipes_folder",
    "shipped_recipes",
]
