"""Detectors of mmdet with one dense head: RetinaNet and others whose head leaves boxes to ``BaseDenseHead``."""

from typing import Any

from mmengine.model import BaseModel
from torch import Tensor

from ...errors import ExportError
from .base import DeployNetwork
from .boxes import Suppression, candidates, check_stock


class SingleStageDetector(DeployNetwork):
    """A picture -> ``boxes`` [K, 4] xyxy in its pixels, ``scores`` [K] in falling order, ``labels`` [K]."""

    task = 'detection'
    batched = False
    outputs = ('boxes', 'scores', 'labels')

    def __init__(self, model: BaseModel) -> None:
        from mmdet.models.dense_heads.base_dense_head import BaseDenseHead

        head = model.bbox_head
        if not isinstance(head, BaseDenseHead):
            raise ExportError(f'{type(model).__name__} with {type(head).__name__}: is no dense head, and has no translation.')
        check_stock(head, BaseDenseHead, 'predict', 'predict_by_feat', '_predict_by_feat_single', '_bbox_post_process')
        loss = getattr(head, 'loss_cls', None)
        if loss is None or getattr(loss, 'custom_cls_channels', False):
            raise ExportError(
                f'{type(head).__name__} with {type(loss).__name__} as loss_cls: has an activation of its own, which has no translation.'
            )
        settings = model.test_cfg
        self.score_threshold = float(settings.get('score_thr', 0))
        self.suppression = Suppression(settings.get('nms'), settings.get('max_per_img', -1))
        self.most = self.suppression.most
        super().__init__(model)

    def forward(self, picture: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        head = self.model.bbox_head
        height, width = picture.shape[2:]
        outputs = head(self.model.extract_feat(self.picture(picture)))
        found = candidates(head, outputs, (height, width), self.model.test_cfg, self.score_threshold)
        keep = self.suppression(found.boxes, found.scores, found.labels)
        return found.boxes[keep], found.scores[keep], found.labels[keep]

    def facts(self) -> dict[str, Any]:
        return dict(score_threshold=self.score_threshold)
