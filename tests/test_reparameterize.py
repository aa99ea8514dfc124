"""Re-parameterization of whole models."""

import copy

import pytest
import torch
from conftest import few, needs_torch
from method_case import relative
from mmcv.cnn import ConvModule
from random_layers import ActivatedNorm
from torch import nn

from orepa_mm import DBBConv2d, OREPAConv2d, expand, reparameterize, reparameterized
from orepa_mm.errors import FuseError
from orepa_mm.layers import METHODS, ReparameterizableConv2d
from orepa_mm.reparam import plan_swaps

OREPA = dict(type='OREPAConv2d')


def settle(model: nn.Module) -> nn.Module:
    """Norms with statistics and affine values of their own, as after training; eval mode."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    model.eval()  # which returns nothing in some backbones
    return model


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


def test_the_plain_network_is_an_ordinary_one():
    model, x = nested().to(memory_format=torch.channels_last), torch.randn(2, 3, 20, 20)
    expected, norms = model(x), [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    with torch.inference_mode():
        assert reparameterize(model) is model and relative(model(x), expected) < 1e-5
    assert norms == [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert model[2].conv1.weight.is_contiguous(memory_format=torch.channels_last) and not any(m.training for m in model.modules())
    assert all(module.training for module in reparameterize(nested().train()).modules())
    before = list(model.modules())
    reparameterize(model)
    assert before == list(model.modules())
    assert not any(p.is_inference() for p in model.parameters())


def test_requires_grad_follows_what_it_was_made_from():
    model = nested()
    model[0].kernel.requires_grad_(False)
    model[2].conv2.bias.requires_grad_(False)
    reparameterize(model)
    assert not model[0].weight.requires_grad and model[0].bias.requires_grad
    assert model[2].conv2.weight.requires_grad and not model[2].conv2.bias.requires_grad
    assert all(p.is_leaf for p in model.parameters())
    model(torch.randn(1, 3, 20, 20)).sum().backward()


def test_the_context_gives_back_the_very_same_modules():
    model = nested()
    before = {name: id(module) for name, module in model.named_modules()}
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(ZeroDivisionError), reparameterized(model) as same:
        assert same is model and type(model[0]) is nn.Conv2d
        model.train()
        raise ZeroDivisionError
    assert before == {name: id(module) for name, module in model.named_modules()} and all(m.training for m in model.modules())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_what_has_no_plain_form_is_refused_and_nothing_changed():
    """Training mode is refused in test_properties.py."""
    model = nn.Sequential(OREPAConv2d(4, 4, 3), DBBConv2d(4, 4, 3, padding=1)).eval()
    model[1].origin_norm = nn.BatchNorm2d(4, track_running_stats=False).eval()
    before = list(model.modules())
    with pytest.raises(FuseError, match='no running statistics'):
        reparameterize(model)
    assert before == list(model.modules())
    with pytest.raises(FuseError, match='bare OREPAConv2d.*nn.Sequential'), reparameterized(model[0]):
        pass


MERGED = {  # blocks of mmpretrain that know how to deploy themselves
    'RepVGG': dict(arch='A0'),
    'MobileOne': dict(arch='s0'),
    'RepLKNet': dict(arch='31B'),
    'RIFormer': dict(arch='s12'),
    'LeViT': dict(arch='128s'),
    'RepMLPNet': dict(arch='B', img_size=224),
}


@pytest.mark.parametrize('name', few(MERGED, 'RepVGG', 'MobileOne', 'LeViT'))
def test_stock_blocks_that_deploy_themselves_take_part(name, caplog):
    from mmpretrain.registry import MODELS

    model = settle(MODELS.build(dict(type=name, **MERGED[name]))).double()
    x = torch.randn(1, 3, *(2 * [224] if name in ('LeViT', 'RepMLPNet') else 2 * [64]), dtype=torch.float64)
    holder = nn.Sequential(model)
    with torch.no_grad():
        expected = holder(x)[-1]
        before = {key: id(module) for key, module in holder.named_modules()}
        with reparameterized(holder):
            assert before != {key: id(module) for key, module in holder.named_modules()}
            assert relative(holder(x)[-1], expected) < 1e-10
        assert before == {key: id(module) for key, module in holder.named_modules()}
        reparameterize(holder)
        assert relative(holder(x)[-1], expected) < 1e-10
        deployed = {key: id(module) for key, module in holder.named_modules()}
        reparameterize(holder)
    assert deployed == {key: id(module) for key, module in holder.named_modules()} and 'Left as they are' not in caplog.text


def test_blocks_with_norms_they_do_not_know():
    from mmpretrain.models.backbones.mobileone import MobileOneBlock

    synchronised = nn.Sequential(MobileOneBlock(4, 4, 3, num_convs=1, padding=1, norm_cfg=dict(type='SyncBN'))).eval()
    with pytest.raises(FuseError, match='MobileOneBlock "0" does not deploy itself.*BN'):
        reparameterize(synchronised)
    activated = settle(nn.Sequential(MobileOneBlock(4, 4, 3, num_convs=1, padding=1)))
    norm = ActivatedNorm(4)
    norm.load_state_dict(activated[0].branch_norm.state_dict())
    activated[0].branch_norm = norm.eval()
    x = torch.randn(1, 4, 8, 8)
    expected = activated(x)
    assert relative(reparameterize(activated)(x), expected) == 0 and activated[0].branch_norm is norm


def test_a_subclass_that_computes_something_else_is_left_alone():
    from mmpretrain.models.backbones.mobileone import MobileOneBlock
    from mmpretrain.models.backbones.repvgg import RepVGGBlock

    for base, options in ((RepVGGBlock, {}), (MobileOneBlock, dict(num_convs=1, kernel_size=3))):

        class Doubled(base):
            def forward(self, x):
                return 2 * super().forward(x)

        model = nn.Sequential(settle(Doubled(4, 4, padding=1, **options)))
        x = torch.randn(1, 4, 8, 8)
        expected = model(x)
        assert relative(reparameterize(model)(x), expected) < 1e-5 and type(model[0]) is Doubled


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('kind', ['RepVGG', 'MobileOne'])
def test_merged_blocks_keep_dtype_device_mode_and_what_is_frozen(kind, training):
    """Also with a convolution that has branches of its own inside."""
    from mmpretrain.models.backbones.mobileone import MobileOneBlock
    from mmpretrain.models.backbones.repvgg import RepVGGBlock

    block = MobileOneBlock(4, 4, 3, 1, padding=1, conv_cfg=OREPA) if kind == 'MobileOne' else RepVGGBlock(4, 4, padding=1, conv_cfg=OREPA)
    holder = settle(nn.Sequential(block)).double().requires_grad_(False)
    block.training = training  # its norms are in eval mode, as with norm_eval
    x = torch.randn(2, 4, 9, 9, dtype=torch.float64)
    expected = holder(x)
    with reparameterized(holder):
        plain = holder[0]
        assert plain is not block and plain.training is training and not list(plain.buffers())
        convs = [module for module in plain.modules() if isinstance(module, ReparameterizableConv2d | nn.Conv2d)]
        assert [type(conv) for conv in convs] == [nn.Conv2d] and convs[0].weight.shape == (4, 4, 3, 3)
        assert all(p.dtype == torch.float64 and not p.requires_grad for p in plain.parameters())
        assert relative(holder(x), expected) < 1e-10
    assert holder[0] is block and torch.get_default_dtype() == torch.float32
    assert all(p.is_meta for p in reparameterize(copy.deepcopy(holder).to('meta')).parameters())
    assert all(p.requires_grad for p in reparameterize(holder.requires_grad_(True)).parameters())


def test_parts_that_deploying_does_not_change_are_left():
    class Deploys(nn.Module):
        def __init__(self, part: nn.Module):
            super().__init__()
            self.part = part

        def forward(self, x):
            return self.part(x)

        def switch_to_deploy(self):
            self.part = nn.Conv2d(4, 4, 1)

    class Changed(Deploys):
        def forward(self, x):
            return -self.part(x)

    unchanged = Deploys(nn.Conv2d(4, 4, 1))  # the keys stay
    done, changed = Deploys(nn.Conv2d(4, 4, 1, bias=False)), Changed(nn.Conv2d(4, 4, 1, bias=False))
    done.deploy = True
    switched = Deploys(nn.Conv2d(4, 4, 1, bias=False))
    outer = Deploys(nn.Sequential(nn.Identity(), Deploys(nn.Conv2d(4, 4, 1, bias=False))))  # the innermost deploys itself
    uncallable, normed = Deploys(nn.Conv2d(4, 4, 1, bias=False)), Deploys(ActivatedNorm(4))
    uncallable.switch_to_deploy = 'no method'
    model = nn.Sequential(unchanged, done, changed, switched, outer, uncallable, normed).eval()
    before = list(model)
    inner = outer.part[1]
    assert [swap.path for swap in plan_swaps(model)] == ['3', '4.part.1']
    reparameterize(model)
    assert [new is old for new, old in zip(model, before, strict=True)] == [True, True, True, False, True, True, True]
    assert model[4].part[1] is not inner and model[3].part.bias is not None and switched.part.bias is None
    partly = Deploys(nn.Conv2d(4, 4, 1, bias=False).requires_grad_(False))
    partly.register_parameter('scale', nn.Parameter(torch.ones(1)))
    partly.register_parameter('shift', nn.Parameter(torch.ones(1), requires_grad=False))
    plain = reparameterize(nn.Sequential(partly))[0]  # what is new trains if anything did, what stays as it did
    trained = {name: parameter.requires_grad for name, parameter in plain.named_parameters()}
    assert trained == {'scale': True, 'shift': False, 'part.weight': False, 'part.bias': True}


@pytest.mark.parametrize('change', ['expand', 'reparameterize', 'reparameterized'])
def test_hooks_of_the_backward_pass_are_called_whatever_the_form(change):
    """Full ones of both kinds, and those that are registered while another form is in place."""
    model = nn.Sequential(nn.Conv2d(2, 4, 3) if change == 'expand' else OREPAConv2d(2, 4, 3))
    called = []
    model[0].register_full_backward_hook(lambda *_: called.append('before'))
    model[0].register_full_backward_pre_hook(lambda *_: called.append('pre'))

    def backward() -> list[str]:
        called.clear()
        model(torch.randn(1, 2, 5, 5, requires_grad=True)).sum().backward()
        return sorted(called)

    assert backward() == ['before', 'pre']
    if change == 'reparameterized':
        with reparameterized(model):
            assert backward() == ['before', 'pre']
            model[0].register_full_backward_hook(lambda *_: called.append('inside'))
            model[0].register_forward_hook(lambda *_: called.append('forward'))
        assert backward() == ['before', 'forward', 'inside', 'pre']
        bare = nn.Sequential(OREPAConv2d(2, 4, 3))
        with reparameterized(bare):
            bare[0].register_full_backward_hook(lambda *_: called.append('first'))
        called.clear()
        bare(torch.randn(1, 2, 5, 5, requires_grad=True)).sum().backward()
        assert called == ['first']
    else:
        dict(expand=expand, reparameterize=reparameterize)[change](model)
        assert backward() == ['before', 'pre']


@pytest.mark.parametrize('method', ['OREPA', 'DBB'])
def test_parameters_in_half_precision_are_the_same_afterwards(method):
    """What torch keeps of them too, on which a distributed wrapper has its hooks."""
    needs_torch('2.3', 'get_gradient_edge')
    model = nn.Sequential(METHODS[method](2, 4, 3, padding=1)).to(torch.bfloat16).eval()
    parameters = list(model.parameters())
    for p in parameters:
        p.accumulated = torch.autograd.graph.get_gradient_edge(p).node
    before = [(p, p.data_ptr(), p.accumulated) for p in parameters]
    with reparameterized(model) as plain:
        assert plain[0].weight.dtype == torch.bfloat16
    assert [(p, p.data_ptr(), torch.autograd.graph.get_gradient_edge(p).node) for p in model.parameters()] == before
