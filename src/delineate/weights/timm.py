"""ResNet, ResNet-D, ResNeXt and ResNeSt of timm (and torchvision, with the same names): classifiers to start a network from."""

from __future__ import annotations

from collections.abc import Sequence

from delineate.weights.encoders import convert_classifier, networks_on, recognise_encoder
from delineate.weights.importer import Imported, Importer, State


def recognise(state: State) -> Sequence[str]:
    """What can start from the classifier: `networks_on`."""
    encoder = recognise_encoder(state, "")
    return networks_on(encoder) if encoder else []


def convert(state: State, arch: str, num_classes: int | None) -> Imported:
    """The network `arch` with the classifier's encoder; dilated stages of ResNeSt pool as timm's do."""
    encoder = recognise_encoder(state, "") or ""
    dilated = encoder.startswith("resnest") and arch.startswith("deeplab")
    return convert_classifier(state, encoder, arch, num_classes, {"dilation": "timm"} if dilated else {})


IMPORTER = Importer("timm", recognise, convert)
