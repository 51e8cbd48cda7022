"""Networks, and the zoo that builds them by name."""

from delineate.models.complexity import ModelRow, count_flops, count_parameters, model_table
from delineate.models.fuse import fuse_for_inference
from delineate.models.semantic import SemanticModel
from delineate.models.zoo import create_model, list_models

__all__ = [
    "ModelRow",
    "SemanticModel",
    "count_flops",
    "count_parameters",
    "create_model",
    "fuse_for_inference",
    "list_models",
    "model_table",
]
