"""Weight files and the conventions stored with them."""

from delineate.weights.conventions import Conventions
from delineate.weights.files import WeightsInfo, load_model, read_info, save_model

__all__ = ["Conventions", "WeightsInfo", "load_model", "read_info", "save_model"]
