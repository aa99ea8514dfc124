"""ExpandNetConv2d: the published sequence, written out, and the way from a plain kernel."""

import pytest
import torch
from method_case import MethodCase, relative
from torch import nn

from orepa_mm import expand
from orepa_mm.errors import ExpandError, LayerError
from orepa_mm.layers import ExpandNetConv2d


class TestExpandNet(MethodCase):
    layer = ExpandNetConv2d
    forms = {  # the two orders of the products
        'wider': dict(kernel_size=3, padding=1, out_channels=18, expansion=2),
        'narrower': dict(kernel_size=3, padding=1, out_channels=2, expansion=3),
    }

    def formula(self, layer, x):
        """1x1 to r I channels, k x k to r O with stride and padding, 1x1 to O (paper, section 3.1)."""
        options = dict(stride=layer.stride, padding=layer.padding, dilation=layer.dilation, groups=layer.groups)
        y = nn.functional.conv2d(x, layer.kernel.first, groups=layer.groups)
        y = nn.functional.conv2d(y, layer.kernel.middle, **options)
        return nn.functional.conv2d(y, layer.kernel.last, layer.bias, groups=layer.groups)

    def test_the_start_keeps_the_variance(self):
        torch.manual_seed(0)
        # Before a ReLU a kernel of variance 2 / (I k k) keeps it (He et al., 2015); here over 36864 weights, to a tenth.
        assert ExpandNetConv2d(64, 64, 3).weight.var().item() * 64 * 9 == pytest.approx(2, rel=0.1)

    @pytest.mark.parametrize('shape', [(4, 8, 3), (4, 8, 3, 1, 0, 1, 2), (6, 4, 7)])
    def test_a_step_of_the_middle_kernel_moves_the_product_as_it_would_a_plain_kernel(self, shape):
        layer = expand(nn.Conv2d(*shape, dtype=torch.float64), method='ExpandNet')
        before, loss = layer.weight.detach(), torch.randn_like(layer.weight)
        (layer.weight * loss).sum().backward()
        with torch.no_grad():
            layer.kernel.middle -= layer.kernel.middle.grad
            assert relative(layer.weight - before, -loss) < 1e-6  # drawn in float32, so orthonormal to its rounding

    def test_half_precision_keeps_the_kernel(self):
        conv = nn.Conv2d(8, 8, 3, dtype=torch.bfloat16)
        # One rounding of the k x k kernel, 2**-9 of each weight, spread by products with orthonormal rows.
        assert relative(expand(conv, method='ExpandNet').double().weight, conv.weight) < 2**-7

    def test_bad_options_are_refused(self):
        with pytest.raises(LayerError, match='expansion=0 must be at least 1'):
            self.build(expansion=0)
        with pytest.raises(ExpandError, match=r"branches=\('origin',\) is for method='OREPA', not 'ExpandNet'"):
            expand(nn.Conv2d(4, 4, 3), method='ExpandNet', branches=('origin',))
