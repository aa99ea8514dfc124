"""RefConv2d: the published map over the kernel, written out, and that it alone is trained."""

import pytest
import torch
from method_case import MethodCase, draw
from torch import nn

from orepa_mm import attach_branches, expand
from orepa_mm.errors import LayerError
from orepa_mm.layers import RefConv2d


class TestRefConv(MethodCase):
    layer = RefConv2d
    sizes = (3, 5, 7)
    forms = {'depthwise': dict(kernel_size=5, padding=2, groups=6)}

    def formula(self, layer, x):
        """The kernel's O I/g slices in blocks of g, each block through a 3x3 convolution of its own, as published."""
        basis, blocks = layer.kernel.basis, []
        for slices, weight in zip(basis.flatten(0, 1).split(layer.groups), layer.kernel.map.split(layer.groups), strict=True):
            blocks.append(nn.functional.conv2d(slices[None], weight, padding=1)[0])
        kernel = basis + torch.cat(blocks).view_as(basis)
        return nn.functional.conv2d(x, kernel, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)

    def test_a_1x1_kernel_is_refused_and_left_plain(self):
        with pytest.raises(LayerError, match='at least 3x3'):
            RefConv2d(4, 4, 1)
        model = expand(nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3)), method='RefConv')
        assert [type(layer) for layer in model] == [nn.Conv2d, RefConv2d]

    def test_training_moves_the_map_alone_and_a_frozen_layer_stays_frozen(self):
        conv = nn.Conv2d(4, 4, 3, groups=4, bias=False)
        before, frozen = conv.weight.detach().clone(), nn.Conv2d(4, 4, 3, groups=4).requires_grad_(False)
        assert not any(p.requires_grad for p in expand(frozen, method='RefConv').parameters())
        layer, model = expand(nn.Conv2d(4, 4, 3, groups=4), method='RefConv'), nn.Sequential(conv)
        assert [name for name, p in layer.named_parameters() if p.requires_grad] == ['bias', 'kernel.map']
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        (update,) = attach_branches(model, sgd, method='RefConv').updates
        model(draw(2, 4, 9, 8, dtype=torch.float32)).square().sum().backward()
        sgd.step()
        assert torch.equal(update.kernel.basis, before) and update.kernel.map.all() and not torch.equal(conv.weight, before)
