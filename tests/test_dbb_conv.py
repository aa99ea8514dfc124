"""DBBConv2d: the published block, written out."""

import pytest
import torch
from method_case import NormedCase, draw
from plain_formula import written_out
from torch import nn

from orepa_mm import DBBConv2d
from orepa_mm.layers.dbb_conv import _pad


class TestDBB(NormedCase):
    layer = DBBConv2d

    def formula(self, layer, x):
        return written_out(layer, x)

    @pytest.mark.parametrize('kind', [torch.float32, torch.bfloat16])
    def test_padding_leaves_the_inside_as_it_is(self, kind):
        norm, x = self.build(dtype=kind).avg_norm1, draw(2, 12, 9, 8, dtype=kind)
        nn.init.constant_(norm.bias, 100)
        assert torch.equal(_pad(x, norm, (2, 1))[:, :, 2:-2, 1:-1], x)
