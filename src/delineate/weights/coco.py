"""Names of what COCO's published networks find. They belong to the data set, and no checkpoint holds them."""

from __future__ import annotations

from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights

TORCHVISION_CLASSES: tuple[str, ...] = tuple(MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"][1:])
"""COCO's category ids 1 to 90 as torchvision's classes 0 to 89 without its background; unused ids are named "N/A"."""

COCO_CLASSES = tuple(name for name in TORCHVISION_CLASSES if name != "N/A")
"""The 80 categories, in the order of their ids."""

COCO_STUFF = (
    *("banner", "blanket", "bridge", "cardboard", "counter", "curtain", "door-stuff", "floor-wood", "flower", "fruit"),
    *("gravel", "house", "light", "mirror-stuff", "net", "pillow", "platform", "playingfield", "railroad", "river", "road"),
    *("roof", "sand", "sea", "shelf", "snow", "stairs", "tent", "towel", "wall-brick", "wall-stone", "wall-tile", "wall-wood"),
    *("water-other", "window-blind", "window-other", "tree-merged", "fence-merged", "ceiling-merged", "sky-other-merged"),
    *("cabinet-merged", "table-merged", "floor-other-merged", "pavement-merged", "mountain-merged", "grass-merged"),
    *("dirt-merged", "paper-merged", "food-other-merged", "building-other-merged", "rock-merged", "wall-other-merged"),
    "rug-merged",
)
"""The 53 stuff categories of COCO's panoptic task, in the order of their ids."""


def class_names(count: int) -> tuple[str, ...]:
    """Return COCO's names where the count is COCO's, or numbered ones.

    >>> class_names(80)[:2], class_names(2)
    (('person', 'bicycle'), ('class 0', 'class 1'))
    """
    known = {len(names): names for names in (COCO_CLASSES, TORCHVISION_CLASSES)}
    return known.get(count) or tuple(f"class {index}" for index in range(count))


def stuff_names(count: int) -> tuple[str, ...]:
    """Return COCO's names of stuff where the count is COCO's, or numbered ones."""
    return COCO_STUFF if count == len(COCO_STUFF) else tuple(f"stuff {index}" for index in range(count))
