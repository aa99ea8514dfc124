"""From a plain picture to what a network takes."""

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmengine.structures import BaseDataElement
from torch import Tensor, nn


class PictureInput(nn.Module):
    """What a model's data preprocessor does in testing, on a plain picture: channel order, mean and deviation, padding.

    Input: uint8 [N, C, H, W], RGB where C is 3, else as the toolbox's loader gives them. Output: float32, padded at the right and at the
    bottom to a multiple of ``divisor``. The preprocessor is asked by pictures of one pixel, so it may be of any class.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, preprocessor: BaseModule, channels: int = 3) -> None:
        super().__init__()
        black, blue = (self._ask(preprocessor, channels, first) for first in (0, 255))
        self.flipped = channels == 3 and int((black - blue)[:, 0, 0].abs().argmax()) == 0
        self.divisor = black.shape[-1]
        self.padding = float(black[0, -1, -1]) if self.divisor > 1 else 0.0
        for name, default in (('mean', 0.0), ('std', 1.0)):
            value = getattr(preprocessor, name, None)
            self.register_buffer(name, torch.full((channels, 1, 1), default) if value is None else value.detach().clone().float(), False)

    @staticmethod
    def _ask(preprocessor: BaseModule, channels: int, first: int) -> Tensor:
        """What it makes of one pixel with this value in the first channel."""
        pixel = torch.tensor([first] + [0] * (channels - 1), dtype=torch.uint8).view(channels, 1, 1)
        return preprocessor(dict(inputs=[pixel], data_samples=[BaseDataElement()]), False)['inputs'][0]

    def forward(self, picture: Tensor) -> Tensor:
        x = picture.flip(1) if self.flipped else picture
        x = (x.float() - self.mean) / self.std
        if self.divisor == 1:
            return x
        # Written so that the exporter sees a multiple of the divisor, whose halves it needs no formula for.
        down, right = ((size + self.divisor - 1) // self.divisor * self.divisor - size for size in picture.shape[2:])
        return F.pad(x, (0, right, 0, down), value=self.padding)
