"""Re-parameterization of whole models."""

import copy

import pytest
import torch
from mmcv.cnn import ConvModule
from torch import nn

from orepa_mm import OREPAConv2d, reparameterize
from orepa_mm.errors import FuseError
from orepa_mm.layers import ReparameterizableConv2d
from orepa_mm.reparam import reparameterized

OREPA = dict(type='OREPAConv2d')


def settle(model: nn.Module) -> nn.Module:
    """Norms with statistics and affine values of their own, as after training; eval mode."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    return model.eval()


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = OREPAConv2d(4, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = OREPAConv2d(8, 8, 1)
        self.relu = nn.ReLU()
        self.bn2 = nn.BatchNorm2d(8)

    def forward(self, x):
        return self.bn2(self.relu(self.conv2(self.bn1(self.conv1(x)))))


def relative(actual, expected):
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def nested() -> nn.Module:
    return settle(
        nn.Sequential(
            OREPAConv2d(3, 4, 7, padding=3, stride=2, bias=True),
            nn.BatchNorm2d(4),
            Block(),
            ConvModule(8, 6, 3, conv_cfg=OREPA, norm_cfg=dict(type='BN')),
            nn.Sequential(nn.ReLU(), OREPAConv2d(6, 6, 3), nn.GroupNorm(2, 6)),
        )
    )


def test_nested_model_keeps_its_function_and_has_no_branches_left():
    model = nested()
    x = torch.randn(2, 3, 20, 20)
    expected = model(x)
    assert reparameterize(model) is model
    assert relative(model(x), expected) < 1e-5
    assert not any(isinstance(m, ReparameterizableConv2d) for m in model.modules())


def test_only_norms_that_certainly_follow_are_folded():
    model = reparameterize(nested())
    assert type(model[1]) is nn.Identity and type(model[2].bn1) is nn.Identity and type(model[3].norm) is nn.Identity
    assert type(model[2].bn2) is nn.BatchNorm2d  # a ReLU is registered in between
    assert type(model[4][2]) is nn.GroupNorm


def test_norm_first_orders_are_left_alone():
    module = settle(ConvModule(4, 4, 3, conv_cfg=OREPA, norm_cfg=dict(type='BN'), order=('norm', 'conv', 'act')))
    x = torch.randn(1, 4, 8, 8)
    expected = module(x)
    assert type(reparameterize(module).norm) is nn.BatchNorm2d
    assert relative(module(x), expected) < 1e-5


def test_a_second_call_changes_nothing():
    model = reparameterize(nested())
    before = [(name, id(module)) for name, module in model.named_modules()]
    reparameterize(model)
    assert before == [(name, id(module)) for name, module in model.named_modules()]


def test_without_fusing_the_norms_stay():
    model = nested().train()
    x = torch.randn(2, 3, 20, 20)
    reference = copy.deepcopy(model)
    expected = reference(x)
    reparameterize(model, fuse_norm=False)
    assert model.training and type(model[1]) is nn.BatchNorm2d
    assert relative(model(x), expected) < 1e-5


def test_dtype_device_memory_format_and_mode_stay():
    model = nested().double().to(memory_format=torch.channels_last)
    reparameterize(model)
    conv = model[2].conv1
    assert conv.weight.dtype == torch.float64 and conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert not any(module.training for module in model.modules())
    meta = nn.Sequential(OREPAConv2d(2, 2, 3, device='meta'))
    assert reparameterize(meta)[0].weight.device.type == 'meta'


def test_requires_grad_follows_what_it_was_made_from():
    model = nested()
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    for parameter in model[2].bn1.parameters():
        parameter.requires_grad_(False)
    reparameterize(model)
    assert not model[0].weight.requires_grad and model[0].bias.requires_grad  # frozen kernel, trainable norm
    assert model[2].conv1.weight.requires_grad and not model[2].conv1.bias.requires_grad
    assert all(p.is_leaf for p in model.parameters())
    model(torch.randn(1, 3, 20, 20)).sum().backward()


def test_frozen_model_stays_frozen():
    model = nested().requires_grad_(False)
    assert not any(p.requires_grad for p in reparameterize(model).parameters())


def test_norm_without_affine_parameters():
    model = nn.Sequential(OREPAConv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)).eval()
    model[1].running_mean.fill_(2)
    x = torch.randn(1, 3, 8, 8)
    expected = model(x)
    assert relative(reparameterize(model)(x), expected) < 1e-5


def test_sync_batch_norm_is_folded():
    model = settle(nn.Sequential(OREPAConv2d(3, 4, 3), nn.SyncBatchNorm(4)))
    plain = nn.Sequential(copy.deepcopy(model[0]), nn.BatchNorm2d(4)).eval()
    plain[1].load_state_dict(model[1].state_dict())
    x = torch.randn(1, 3, 8, 8)
    expected = plain(x)
    assert relative(reparameterize(model)(x), expected) < 1e-5


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda model: model.train(), 'training mode.*eval'),
        (lambda model: model.__setitem__(1, nn.BatchNorm2d(4, track_running_stats=False)), 'no running statistics'),
        (lambda model: model.__setitem__(1, nn.BatchNorm2d(5).eval()), '5 channels'),
    ],
)
def test_what_cannot_be_folded_is_refused_and_nothing_changed(change, message):
    model = nested()
    change(model)
    before = [type(module) for module in model.modules()]
    with pytest.raises(FuseError, match=message):
        reparameterize(model)
    assert before == [type(module) for module in model.modules()]


def test_shared_layer_with_two_norms_stays_shared_and_unfolded():
    conv = OREPAConv2d(4, 4, 3, padding=1)
    model = settle(nn.Sequential(nn.Sequential(conv, nn.BatchNorm2d(4)), nn.Sequential(conv, nn.BatchNorm2d(4))))
    x = torch.randn(1, 4, 8, 8)
    expected = model(x)
    reparameterize(model)
    assert model[0][0] is model[1][0] and type(model[0][1]) is nn.BatchNorm2d
    assert relative(model(x), expected) < 1e-5


def test_a_bare_layer_is_returned_as_its_convolution():
    conv = OREPAConv2d(4, 8, 3, stride=2, padding=1, dilation=2, groups=2, padding_mode='reflect')
    x = torch.randn(1, 4, 12, 12)
    plain = reparameterize(conv)
    assert type(plain) is nn.Conv2d and relative(plain(x), conv(x)) < 1e-5


def test_the_context_gives_back_the_very_same_modules():
    model = nested()
    before = {name: id(module) for name, module in model.named_modules()}
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(ZeroDivisionError), reparameterized(model):
        assert type(model[0]) is nn.Conv2d
        raise ZeroDivisionError
    assert before == {name: id(module) for name, module in model.named_modules()}
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_works_under_inference_mode():
    model = nested()
    with torch.inference_mode():
        reparameterize(model)
    assert not any(p.is_inference() for p in model.parameters())
