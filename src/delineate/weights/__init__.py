"""Weight files and the conventions stored with them."""

from delineate.weights.conventions import Conventions
from delineate.weights.files import WeightsInfo, load_model, read_info, save_model
from delineate.weights.importing import import_checkpoint

__all__ = ["Conventions", "WeightsInfo", "import_checkpoint", "load_model", "read_info", "save_model"]
