"""ACNetConv2d: the published block, written out."""

from method_case import NormedCase
from torch import nn

from orepa_mm.layers import ACNetConv2d


class TestACNet(NormedCase):
    layer = ACNetConv2d

    def formula(self, layer, x):
        """Three of torch's own convolutions, each with its norm, summed (paper, figure 1).

        Where the padding is wider than keeps the size, a 1 x k or k x 1 kernel is centred in the k x k one: the rest of the padding stays.
        """
        k, (height, width) = layer.kernel_size[0], layer.padding
        reach = [d * (k // 2) for d in layer.dilation]
        shapes = dict(origin=((k, k), (height, width)))
        if k > 1:
            shapes |= dict(horizontal=((1, k), (height - reach[0], width)), vertical=((k, 1), (height, width - reach[1])))
        y = 0
        for name, (size, padding) in shapes.items():
            options = dict(stride=layer.stride, padding=padding, dilation=layer.dilation, groups=layer.groups, bias=False)
            conv = nn.Conv2d(layer.in_channels, layer.out_channels, size, **options)
            conv.weight = getattr(layer, name).weight
            y = y + getattr(layer, f'{name}_norm')(conv(x))
        return y
