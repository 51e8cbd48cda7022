"""ResNet, ResNeXt and ResNeSt of timm (and of torchvision, which names them alike): classifiers to start a network from."""

from __future__ import annotations

from collections.abc import Sequence

from delineate.weights.encoders import convert_classifier, networks_on, recognise_resnest, recognise_resnet
from delineate.weights.importer import Imported, Importer, State


def recognise(state: State) -> Sequence[str]:
    """What can start from the classifier: `networks_on`."""
    encoder = recognise_resnet(state, "") or recognise_resnest(state, "")
    return networks_on(encoder) if encoder else []


def convert(state: State, arch: str, num_classes: int | None) -> Imported:
    """The network `arch` with the classifier's encoder; dilated stages of ResNeSt pool as timm's do."""
    encoder = recognise_resnet(state, "")
    if encoder:
        return convert_classifier(state, encoder, arch, num_classes, {})
    options = {"dilation": "timm"} if arch.startswith("deeplab") else {}
    return convert_classifier(state, recognise_resnest(state, "") or "", arch, num_classes, options)


IMPORTER = Importer("timm", recognise, convert)
