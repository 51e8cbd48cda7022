"""Networks, and the zoo that builds them by name."""

from delineate.models.zoo import create_model, list_models

__all__ = ["create_model", "list_models"]
