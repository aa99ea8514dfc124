"""What all networks that leave this package have in common."""

from typing import Any, ClassVar

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from ..batches import input_channels
from .picture import PictureInput


class DeployNetwork(nn.Module):
    """A model from the plain picture to named outputs.

    Args:
        model: Of mmdet, mmseg or mmpretrain, in evaluation mode; its layers are used, not copied.

    Attributes:
        task: What :class:`.Metadata` says it does.
        batched: Whether it takes several pictures at once.
        channels: Of the pictures.
        outputs: The names of what ``forward`` returns, in its order.
    """

    task: ClassVar[str]
    batched: ClassVar[bool] = True
    outputs: tuple[str, ...]
    model: BaseModel

    def __init__(self, model: BaseModel) -> None:
        super().__init__()
        self.model = model
        self.channels = input_channels(model)
        self.picture = PictureInput(model.data_preprocessor, self.channels)

    def forward(self, picture: Tensor) -> tuple[Tensor, ...]:
        """``picture``: uint8 [N, C, H, W], RGB where C is 3, else as the config's loader gives them."""
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """What a person needs to know of the outputs."""
        return {}

    def feature_maps(self, x: Tensor) -> tuple[Tensor, ...]:
        """All feature maps whose sizes follow from the picture's."""
        return self.model.extract_feat(x)

    @torch.no_grad()
    def coarsest_stride(self) -> int:
        """Pixels of the picture, along a side, to one of its coarsest feature map."""
        side = 512
        maps = self.feature_maps(self.picture(torch.zeros(1, self.channels, side, side, dtype=torch.uint8)))
        return side // min(size for features in maps for size in features.shape[2:])
