"""The recipe: its schema, loading a TOML file, `key=value` overrides, what may change when a run goes on."""

from rlreason.config.engine import ClusterConfig, EndpointConfig, SamplerConfig, Section, TrainerConfig
from rlreason.config.load import load, locate, recipe_toml, recipes_folder, shipped_recipes
from rlreason.config.recipe import (
    ACCURACY,
    DataConfig,
    DistillStage,
    EvalStage,
    GrpoStage,
    OptimizerConfig,
    PolicyConfig,
    Recipe,
    RejectStage,
    RewardTerm,
    Scalar,
    SftStage,
    Stage,
    TokenizerConfig,
    TrainingStage,
)

__all__ = [
    "ACCURACY",
    "ClusterConfig",
    "DataConfig",
    "DistillStage",
    "EndpointConfig",
    "EvalStage",
    "GrpoStage",
    "OptimizerConfig",
    "PolicyConfig",
    "Recipe",
    "RejectStage",
    "RewardTerm",
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
