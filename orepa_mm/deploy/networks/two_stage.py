"""Detectors of mmdet with proposals: Faster R-CNN and Mask R-CNN."""

from typing import Any

import torch
from mmengine.model import BaseModel, BaseModule
from torch import Tensor

from ...errors import ExportError
from .base import DeployNetwork
from .boxes import Suppression, candidates, check_stock


class TwoStageDetector(DeployNetwork):
    """A picture -> ``boxes`` [K, 4] xyxy in its pixels, ``scores`` [K] in falling order, ``labels`` [K] and, where the model has them,
    ``masks`` [K, h, w]: the probability that a point of the box belongs to the object.

    The model's RoI layers are switched to torchvision's operator, which gives the same.
    """

    task = 'detection'
    batched = False

    def __init__(self, model: BaseModel) -> None:
        from mmdet.models.dense_heads import RPNHead
        from mmdet.models.roi_heads import BBoxHead, FCNMaskHead, StandardRoIHead

        if not model.with_rpn or not model.with_roi_head:
            raise ExportError(f'{type(model).__name__}: has no proposals of its own.')
        roi_head = model.roi_head
        check_stock(model.rpn_head, RPNHead, 'predict', 'predict_by_feat', '_predict_by_feat_single', '_bbox_post_process')
        check_stock(roi_head, StandardRoIHead, 'predict', 'predict_bbox', 'predict_mask', '_bbox_forward', '_mask_forward')
        check_stock(roi_head.bbox_head, BBoxHead, 'predict_by_feat', '_predict_by_feat_single')
        if roi_head.bbox_head.custom_cls_channels or not roi_head.bbox_head.with_reg:
            raise ExportError(f'{type(roi_head.bbox_head).__name__}: a softmax over classes and a box regression are needed.')
        self.proposal_settings, self.settings = model.test_cfg.rpn, model.test_cfg.rcnn
        self.score_threshold, self.most = float(self.settings.score_thr), self.settings.max_per_img
        self.proposal_suppression = Suppression(self.proposal_settings.get('nms'), self.proposal_settings.max_per_img)
        self.suppression = Suppression(self.settings.get('nms'), self.most)
        self.outputs = ('boxes', 'scores', 'labels')
        self._prepare(roi_head.bbox_roi_extractor)
        if roi_head.with_mask:
            check_stock(roi_head.mask_head, FCNMaskHead, 'predict_by_feat', '_predict_by_feat_single')
            self._prepare(roi_head.mask_roi_extractor)
            self.outputs += ('masks',)
        super().__init__(model)

    @staticmethod
    def _prepare(extractor: BaseModule) -> None:
        from mmcv.ops import RoIAlign
        from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor

        check_stock(extractor, SingleRoIExtractor, 'forward', 'map_roi_levels')
        for layer in extractor.roi_layers:
            if not isinstance(layer, RoIAlign) or layer.pool_mode != 'avg':
                raise ExportError(f'{type(layer).__name__}: of the RoI layers, RoIAlign with averages has a translation.')
            layer.use_torchvision = True

    def forward(self, picture: Tensor) -> tuple[Tensor, ...]:
        height, width = picture.shape[2:]
        shape = (height, width)
        features = self.model.extract_feat(self.picture(picture))
        boxes, scores, labels = self.detect(features, self.proposals(features, shape), shape)
        if not self.model.roi_head.with_mask:
            return boxes, scores, labels
        return boxes, scores, labels, self.masks(features, boxes, labels)

    def proposals(self, features: tuple[Tensor, ...], shape: tuple[int, int]) -> Tensor:
        """Boxes [R, 4] that may hold an object."""
        found = candidates(self.model.rpn_head, self.model.rpn_head(features), shape, self.proposal_settings)
        keep = self.proposal_suppression(found.boxes, found.scores, found.levels)
        torch._check(keep.shape[0] > 0)  # a proposal network has no threshold, so something is left
        return found.boxes[keep]

    def detect(self, features: tuple[Tensor, ...], proposals: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes, scores and labels of the second stage."""
        roi_head, head = self.model.roi_head, self.model.roi_head.bbox_head
        logits, deltas = head(self.regions(roi_head.bbox_roi_extractor, features, proposals))
        scores = logits.softmax(-1)[:, :-1]
        sets = 1 if head.reg_class_agnostic else head.num_classes
        boxes = head.bbox_coder.decode(proposals.repeat_interleave(sets, dim=0), deltas.reshape(-1, 4), max_shape=shape)
        place, labels = (scores > self.score_threshold).nonzero().unbind(1)
        scores = scores[place, labels]
        boxes = boxes[place if sets == 1 else place * sets + labels]
        keep = self.suppression(boxes, scores, labels)
        return boxes[keep], scores[keep], labels[keep]

    def masks(self, features: tuple[Tensor, ...], boxes: Tensor, labels: Tensor) -> Tensor:
        head = self.model.roi_head.mask_head
        masks = head(self.regions(self.model.roi_head.mask_roi_extractor, features, boxes)).sigmoid()
        return masks[:, 0] if head.class_agnostic else masks[torch.arange(labels.shape[0]), labels]

    def regions(self, extractor: BaseModule, features: tuple[Tensor, ...], boxes: Tensor) -> Tensor:
        """The features inside each box, from the level that fits its size: the extractor without its branches on empty levels."""
        rois = torch.cat([torch.zeros_like(boxes[:, :1]), boxes], 1)
        features = features[: extractor.num_inputs]
        levels = extractor.map_roi_levels(rois, len(features))
        result = features[0].new_zeros(rois.shape[0], extractor.out_channels, *extractor.roi_layers[0].output_size)
        for level, layer in enumerate(extractor.roi_layers):
            here = (levels == level).nonzero().squeeze(1)
            result[here] = layer(features[level], rois[here])
        return self.model.roi_head.shared_head(result) if self.model.roi_head.with_shared_head else result

    def facts(self) -> dict[str, Any]:
        masks = dict(mask_threshold=float(self.settings.mask_thr_binary)) if self.model.roi_head.with_mask else {}
        return dict(score_threshold=self.score_threshold, **masks)
