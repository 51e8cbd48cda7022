"""Prediction: pictures of any size, objects, `Results`."""

from delineate.predict.folder import predict_folder
from delineate.predict.objects import Objects, extract_objects
from delineate.predict.predictor import Predictor
from delineate.predict.results import Results
from delineate.predict.tiling import predict_windows

__all__ = ["Objects", "Predictor", "Results", "extract_objects", "predict_folder", "predict_windows"]
