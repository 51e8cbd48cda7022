"""Mask R-CNN (He et al. 2017, arXiv:1703.06870): boxes, masks and keypoints of the objects in pictures.

Every stage has a fixed number of slots a picture and says which of them are used: proposals, samples, detections. Nothing has a
shape that depends on values, so empty pictures need no special case, and inference compiles and exports whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from delineate.losses.detection import box_losses, keypoint_loss, mask_loss, mask_targets
from delineate.losses.matching import SampledRegions, Sampler, sample_matches, sample_regions
from delineate.models.box_head import BOX_WEIGHTS, BoxHead, find_boxes
from delineate.models.detector_conventions import DetectorConventions
from delineate.models.instance import InstanceModel
from delineate.models.keypoint_head import KeypointHead
from delineate.models.mask_head import MaskHead
from delineate.models.panoptic_fpn import SemanticHead, semantic_loss
from delineate.models.regions import RegionFeatures, Regions, regions
from delineate.models.rpn import RPN, AnchorScores, Proposals
from delineate.ops import Keypoints, decode_keypoints
from delineate.ops.instances import Detections, InstanceTargets


class MaskRCNN(InstanceModel):
    """An encoder, a neck that makes its maps a pyramid, region proposals, and heads that look at regions of those maps.

    `box_regions` and the others read the features of regions. Where a head has none of its own, it sees what the box head sees,
    as in the C4 form. In training the heads learn from `samples` regions of each picture, a quarter of them positive at most;
    `sampler` draws them.
    """

    sampler: Sampler

    def __init__(
        self,
        encoder: nn.Module,
        neck: nn.Module,
        rpn: RPN,
        box_regions: RegionFeatures,
        box_head: BoxHead,
        *,
        conventions: DetectorConventions,
        mask_regions: RegionFeatures | None = None,
        mask_head: MaskHead | None = None,
        keypoint_regions: RegionFeatures | None = None,
        keypoint_head: KeypointHead | None = None,
        semantic_head: SemanticHead | None = None,
        samples: int = 512,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.neck = neck
        self.rpn = rpn
        self.box_regions = box_regions
        self.box_head = box_head
        self.mask_regions = mask_regions
        self.mask_head = mask_head
        self.keypoint_regions = keypoint_regions
        self.keypoint_head = keypoint_head
        self.semantic_head = semantic_head
        self.positives = samples // 4
        self.sampler = partial(sample_matches, count=samples, positive_fraction=0.25)
        self.detector_conventions = conventions
        self.has_masks = mask_head is not None
        self.num_keypoints = 0 if keypoint_head is None else keypoint_head.keypoints
        self.num_stuff = 0 if semantic_head is None else semantic_head.num_stuff

    def forward(
        self, images: Tensor, sizes: Tensor | None = None, targets: InstanceTargets | None = None
    ) -> Detections | dict[str, Tensor]:
        """Return detections, or losses if there are `targets`.

        `images` (B, C, H, W) are normalised and padded with zeros at the right and below to multiples of `stride`; `sizes`
        (B, 2) int64 is height and width of each before that, None: all of it. Raises ValueError for other sizes.
        """
        size = self._check(images)
        if sizes is None:
            sizes = torch.tensor(size, device=images.device).expand(len(images), 2)
        maps = self.neck(self.encoder(images))
        anchors = self.rpn(maps, size)
        proposals = self.rpn.propose(anchors, sizes)
        if targets is not None:
            return self.losses(maps, anchors, proposals, targets)
        return self.detect(maps, proposals, sizes)

    def detect(self, maps: Sequence[Tensor], proposals: Proposals, sizes: Tensor) -> Detections:
        """Return the objects among `proposals`: which they are, and their masks and keypoints."""
        rows = regions(*proposals)
        logits, deltas = self.box_head(self.box_regions(maps, rows.rois))
        found = find_boxes(
            rows.spread(logits),
            rows.spread(deltas),
            proposals,
            sizes,
            score_threshold=self.score_threshold,
            nms_threshold=self.nms_threshold,
            capacity=self.detections_per_image,
            min_size=self.detector_conventions.min_detection_size,
        )
        rows = regions(found.boxes, found.valid)
        masks = self._masks(maps, rows, found.labels)
        keypoints = self._keypoints(maps, rows)
        semantic = None if self.semantic_head is None else self.semantic_head(maps)
        return Detections(*found, masks, *keypoints, semantic)

    def _masks(self, maps: Sequence[Tensor], rows: Regions, labels: Tensor) -> Tensor | None:
        """Probabilities (B, D, S, S)."""
        if self.mask_head is None:
            return None
        logits = self.mask_head(self._read(self.mask_regions)(maps, rows.rois))
        return rows.spread(self.mask_head.probabilities(logits, rows.take(labels)))

    def _keypoints(self, maps: Sequence[Tensor], rows: Regions) -> Keypoints | tuple[None, None, None]:
        """Points (B, D, K, 2), their logits and their scores (B, D, K)."""
        if self.keypoint_head is None:
            return None, None, None
        heatmaps = self.keypoint_head(self._read(self.keypoint_regions)(maps, rows.rois))
        return Keypoints(*map(rows.spread, decode_keypoints(heatmaps, rows.rois[:, 1:])))

    def losses(
        self, maps: Sequence[Tensor], anchors: Sequence[AnchorScores], proposals: Proposals, targets: InstanceTargets
    ) -> dict[str, Tensor]:
        """Return the loss of every head, a scalar each."""
        objectness, rpn_box = self.rpn.losses(anchors, targets)
        sampled = sample_regions(*proposals, targets, self.box_head.classes, self.sampler)
        rows = regions(sampled.boxes, sampled.valid)
        features = self.box_regions(maps, rows.rois)
        logits, deltas = self.box_head(features)
        beta = self.detector_conventions.box_beta
        classifier, box = box_losses(rows.spread(logits), rows.spread(deltas), sampled, weights=BOX_WEIGHTS, beta=beta)
        losses = {"rpn_objectness": objectness, "rpn_box": rpn_box, "classifier": classifier, "box": box}
        positive = sampled.first(self.positives)
        chosen = regions(positive.boxes, positive.positive)

        def read(own: RegionFeatures | None) -> Tensor:
            """The features of the positive regions: those that the box head saw, where a head has no others."""
            return features[rows.find(chosen)] if own is None else own(maps, chosen.rois)

        if self.mask_head is not None:
            losses["mask"] = self._mask_loss(read(self.mask_regions), chosen, positive, targets)
        if self.keypoint_head is not None:
            losses["keypoint"] = self._keypoint_loss(read(self.keypoint_regions), chosen, positive, targets)
        if self.semantic_head is not None:
            if targets.semantic is None:
                raise ValueError("the targets have no classes of pixels, but the network finds some; train one without stuff")
            losses["semantic"] = semantic_loss(self.semantic_head(maps), targets.semantic)
        return losses

    def _mask_loss(self, features: Tensor, rows: Regions, positive: SampledRegions, targets: InstanceTargets) -> Tensor:
        assert self.mask_head is not None
        if targets.masks is None:
            raise ValueError("the targets have no masks, but the network finds some; train one without a mask head")
        logits = rows.spread(self.mask_head(features))  # (B, S, C, M, M)
        soft = self.detector_conventions.soft_mask_targets
        true = mask_targets(targets.masks, positive, logits.shape[-1], soft=soft)
        return mask_loss(logits, true, positive, activation=self.mask_head.activation)

    def _keypoint_loss(self, features: Tensor, rows: Regions, positive: SampledRegions, targets: InstanceTargets) -> Tensor:
        assert self.keypoint_head is not None
        if targets.keypoints is None:
            raise ValueError("the targets have no keypoints, but the network finds some; train one without a keypoint head")
        return keypoint_loss(rows.spread(self.keypoint_head(features)), targets.keypoints, positive)

    def _read(self, own: RegionFeatures | None) -> RegionFeatures:
        return self.box_regions if own is None else own

    def _check(self, images: Tensor) -> tuple[int, int]:
        height, width = images.shape[-2:]
        if images.ndim != 4 or height % self.stride or width % self.stride:
            raise ValueError(f"images are {tuple(images.shape)}; expected (B, C, H, W), padded to multiples of {self.stride}")
        return height, width
