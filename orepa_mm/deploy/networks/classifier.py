"""Classifiers of mmpretrain."""

from typing import Any

from mmengine.model import BaseModel
from torch import Tensor

from ...errors import ExportError
from .base import DeployNetwork


class Classifier(DeployNetwork):
    """Pictures -> ``scores`` [N, classes] of an ``ImageClassifier`` of mmpretrain: logits, or with ``softmax`` probabilities."""

    task = 'classification'
    outputs = ('scores',)

    def __init__(self, model: BaseModel, softmax: bool = False) -> None:
        from mmpretrain.models import ClsHead, ImageClassifier, MultiLabelClsHead

        head = getattr(model, 'head', None)
        if not isinstance(model, ImageClassifier) or not isinstance(head, ClsHead | MultiLabelClsHead):
            raise ExportError(f'{type(model).__name__} with {type(head).__name__}: of mmpretrain, classifiers with a score a class go out.')
        if softmax and isinstance(head, MultiLabelClsHead):
            raise ExportError(f'{type(head).__name__}: a picture can have several labels, so there is no softmax; leave --softmax out.')
        super().__init__(model)
        self.softmax, self.several = softmax, isinstance(head, MultiLabelClsHead)

    def forward(self, picture: Tensor) -> tuple[Tensor]:
        scores = self.model.head(self.model.extract_feat(self.picture(picture)))
        return (scores.softmax(1) if self.softmax else scores,)

    def facts(self) -> dict[str, Any]:
        return dict(scores='probabilities' if self.softmax else 'sigmoid logits' if self.several else 'logits')

    def feature_maps(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.model.extract_feat(x, stage='backbone')
