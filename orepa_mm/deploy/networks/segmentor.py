"""Segmentors of mmseg."""

from typing import Any

from mmengine.model import BaseModel
from torch import Tensor

from ...errors import ExportError
from .base import DeployNetwork
from .pooling import replace_adaptive_pools


class Segmentor(DeployNetwork):
    """Pictures -> ``logits`` [N, classes, H, W] at the picture's size, or ``labels`` [N, H, W], of an ``EncoderDecoder``."""

    task = 'segmentation'

    def __init__(self, model: BaseModel, labels: bool = False) -> None:
        from mmseg.models import EncoderDecoder

        if not isinstance(model, EncoderDecoder):
            raise ExportError(f'{type(model).__name__}: of mmseg, EncoderDecoder models go out.')
        mode = model.test_cfg.get('mode', 'whole')
        if mode != 'whole':
            raise ExportError(
                f"model.test_cfg.mode='{mode}': the windows depend on the picture's size and are no part of a graph; export with "
                '--cfg-options model.test_cfg.mode=whole and slide outside of it.'
            )
        super().__init__(model)
        replace_adaptive_pools(model)
        self.labels = labels
        self.outputs = ('labels',) if labels else ('logits',)

    def forward(self, picture: Tensor) -> tuple[Tensor]:
        height, width = picture.shape[2:]
        x = self.picture(picture)
        logits = self.model.encode_decode(x, [dict(img_shape=tuple(x.shape[2:]))])[..., :height, :width]
        if not self.labels:
            return (logits,)
        if logits.shape[1] > 1:
            return (logits.argmax(1),)
        return ((logits.sigmoid() > self.model.decode_head.threshold).squeeze(1).long(),)

    def facts(self) -> dict[str, Any]:
        """A model of one channel says from which probability on a pixel is the foreground."""
        return dict(threshold=self.model.decode_head.threshold) if self.model.out_channels == 1 else {}
