"""OREPARepVGG in the three toolboxes, and the re-parameterization of RepVGG blocks."""

import copy
import importlib

import pytest
import torch
from conftest import few
from method_case import relative
from mmpretrain.models.backbones import RepVGG
from mmpretrain.models.backbones.repvgg import RepVGGBlock
from torch import nn

import orepa_mm
from orepa_mm import OREPAConv2d
from orepa_mm.errors import FuseError

SCOPES = ('mmdet', 'mmseg', 'mmpretrain')
ARCHS = ('A0', 'A1', 'A2', 'B0', 'B1', 'B1g2', 'B1g4', 'B2', 'B2g2', 'B2g4', 'B3', 'B3g2', 'B3g4', 'D2se')


def build(scope: str = 'mmpretrain', arch='A0', base_channels: int = 16, **kwargs):
    registry = importlib.import_module(f'{scope}.registry').MODELS
    net = registry.build(dict(type='OREPARepVGG', arch=arch, base_channels=base_channels, out_indices=(0, 1, 2, 3), **kwargs))
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):  # as after training
            nn.init.normal_(norm.running_mean, std=0.1)
            nn.init.uniform_(norm.running_var, 0.5, 2)
            nn.init.uniform_(norm.bias, 0, 0.5)  # positive: ReLUs of a deep narrow net die else
    net.train(False)  # the stock train() and eval() return None
    return net


@pytest.mark.parametrize('arch', few(ARCHS, 'A0', 'B1g2', 'D2se'))
@pytest.mark.parametrize('method', ['OREPA', 'RepVGG'])
def test_architectures(arch, method):
    net = build(arch=arch, method=method).double()
    assert isinstance(net, RepVGG)
    names = {name: p.shape for name, p in RepVGG(arch, base_channels=16).named_parameters()}
    assert (names == {name: p.shape for name, p in net.named_parameters()}) == (method == 'RepVGG')
    blocks = [m for m in net.modules() if isinstance(m, RepVGGBlock)]
    assert all(isinstance(block.branch_3x3.conv, OREPAConv2d) == (method == 'OREPA') for block in blocks)
    assert all(type(block.branch_1x1.conv) is nn.Conv2d for block in blocks)
    assert {block.branch_3x3.conv.groups for block in blocks} == ({1, int(arch[-1])} if 'g' in arch else {1})
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    expected = net(x)
    orepa_mm.reparameterize(net)
    assert all(relative(a, b) < 1e-10 for a, b in zip(net(x), expected, strict=True))
    # Deployed it has the names and shapes of the stock deployed network, so either takes the other's weights.
    RepVGG(arch, base_channels=16, deploy=True).load_state_dict(net.state_dict())
    deployed = build(arch=arch, method=method, deploy=True).double()
    deployed.load_state_dict(net.state_dict())
    assert all(relative(a, b) < 1e-10 for a, b in zip(deployed(x), expected, strict=True))


@pytest.mark.parametrize('scope', SCOPES)
def test_every_toolbox_trains_and_freezes_it(scope):
    net = build(scope, frozen_stages=1, norm_eval=True)
    net.train()
    outputs = net(torch.randn(2, 3, 64, 64))
    assert [y.shape[-1] for y in outputs] == [16, 8, 4, 2]
    sum(y.square().mean() for y in outputs).backward()
    for name, parameter in net.named_parameters():
        assert (parameter.grad is None) == name.startswith(('stem.', 'stage_1.')), name
    assert not net.stage_3[0].branch_3x3.norm.training


@pytest.mark.parametrize('options', [{}, dict(method='RepVGG'), dict(arch='D2se')])
def test_switch_to_deploy(options):
    net, x = build(**options).double(), torch.randn(1, 3, 64, 64, dtype=torch.float64)
    expected, by_block = net(x)[-1], copy.deepcopy(net)
    net.switch_to_deploy()
    assert net.deploy and relative(net(x)[-1], expected) < 1e-10
    if 'arch' not in options:  # a stock block that deploys itself leaves squeeze and excitation out
        blocks = [module for module in by_block.modules() if isinstance(module, RepVGGBlock)]
        for block in blocks:
            block.switch_to_deploy()
        assert relative(by_block(x)[-1], expected) < 1e-10
        assert all(type(block.branch_reparam) is nn.Conv2d for block in blocks)


@pytest.mark.parametrize('identity', [False, True])
@pytest.mark.parametrize('groups', [1, 2])
def test_convolutions_with_biases_are_merged_too(groups, identity):
    block = RepVGGBlock(4, 4, stride=1 if identity else 2, padding=1, groups=groups).double()
    for convolution, norm in ((block.branch_3x3.conv, block.branch_3x3.norm), (block.branch_1x1.conv, block.branch_1x1.norm)):
        convolution.bias = nn.Parameter(torch.randn(4, dtype=torch.float64))
        norm.running_mean.normal_()
    x = torch.randn(2, 4, 7, 7, dtype=torch.float64)
    assert (block.branch_norm is not None) is identity
    expected = block.eval()(x)
    (plain,) = orepa_mm.reparameterize(nn.Sequential(block))
    assert relative(plain(x), expected) < 1e-10 and plain.branch_reparam.groups == groups


def test_requires_grad_and_channels_last_carry_over():
    net = build(frozen_stages=1).to(memory_format=torch.channels_last)
    orepa_mm.reparameterize(net)
    for block, trained in ((net.stem, False), (net.stage_1[0], False), (net.stage_3[0], True)):
        assert block.branch_reparam.weight.requires_grad == block.branch_reparam.bias.requires_grad == trained
    assert net.stage_3[0].branch_reparam.weight.is_contiguous(memory_format=torch.channels_last)


def test_bad_input():
    for options, message in ((dict(method='DBB'), "method='DBB'.*OREPA, RepVGG"), (dict(arch='C1'), "arch='C1'.*A0")):
        with pytest.raises(ValueError, match=message):
            build(**options)
    net = build()
    net.stage_2[1].branch_norm.train()
    state = list(net.state_dict())
    with pytest.raises(FuseError, match=r'"stage_2\.1\.branch_norm" inside a RepVGGBlock is in training mode'):
        orepa_mm.reparameterize(net)
    assert list(net.state_dict()) == state
