"""Parameter groups, the paper's weight decay rule, and RepVGG's custom L2."""

import copy

import pytest
import torch
from conftest import loss_scaler
from mmengine.optim import build_optim_wrapper
from mmpretrain.registry import MODELS
from torch import nn

from orepa_mm import OREPAConv2d
from orepa_mm.engine.optim_wrapper_constructor import OREPAOptimWrapperConstructor
from orepa_mm.functional import compose, squeeze_kxk

SGD = dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=0.01)
# No decay on biases and norms, and biases learn twice as fast, those of norms too.
PAPER = dict(norm_decay_mult=0.0, custom_keys={'.bias': dict(lr_mult=2.0, decay_mult=0.0)})


def wrapper(model: nn.Module, constructor: str = 'OREPAOptimWrapperConstructor', optimizer: dict = SGD, **paramwise):
    return build_optim_wrapper(model, dict(constructor=constructor, optimizer=dict(optimizer), paramwise_cfg=paramwise or None))


def settings(model: nn.Module, optim_wrapper) -> dict[str, tuple[float, float]]:
    found = {id(p): (group['lr'], group['weight_decay']) for group in optim_wrapper.optimizer.param_groups for p in group['params']}
    return {name: found[id(p)] for name, p in model.named_parameters()}


def resnet() -> nn.Module:
    return MODELS.build(dict(type='OREPAResNet', depth=18, stem_channels=8, base_channels=8))


def repvgg(method: str) -> nn.Module:
    net = MODELS.build(dict(type='OREPARepVGG', arch='A0', method=method, base_channels=16)).double()
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.running_var, 0.5, 2)
            nn.init.uniform_(norm.weight, 0.5, 2)
    return net


def test_settings_that_are_lists():
    model = resnet()
    adam = dict(type='AdamW', lr=0.1, betas=[0.9, 0.99], weight_decay=0.01)

    class WithLists(OREPAOptimWrapperConstructor):
        def add_params(self, params, module, prefix='', is_dcn_module=None):
            start = len(params)
            super().add_params(params, module, prefix, is_dcn_module)
            for group in params[start:]:
                group.setdefault('betas', [0.5, 0.9] if group.get('weight_decay') == 0 else [0.9, 0.99])

    constructor = WithLists(dict(type='OptimWrapper', optimizer=adam), dict(norm_decay_mult=0.0))
    groups = constructor(model).optimizer.param_groups
    assert {tuple(group['betas']) for group in groups} == {(0.5, 0.9), (0.9, 0.99)} and len(groups) == 2


def test_groups_are_merged_and_the_settings_are_the_default_constructors():
    model = resnet()
    rules = dict(PAPER, custom_keys={**PAPER['custom_keys'], 'conv1.kernel.stages': dict(lr_mult=0.1)})
    merged, stock = wrapper(model, **rules), wrapper(model, constructor='DefaultOptimWrapperConstructor', **rules)
    assert settings(model, merged) == settings(model, stock)
    assert len(stock.optimizer.param_groups) == len(list(model.parameters()))
    groups = merged.optimizer.param_groups
    assert len(groups) == 4 and (groups[0]['lr'], groups[0]['weight_decay']) == (0.1, 0.01)


def test_other_settings_keep_groups_apart():
    model = resnet()
    optim_wrapper = wrapper(model, custom_keys={'layer1': dict(momentum=0.5), 'layer2': dict(lr_mult=1.0)})
    momenta = {id(p): group['momentum'] for group in optim_wrapper.optimizer.param_groups for p in group['params']}
    assert all(momenta[id(p)] == (0.5 if name.startswith('layer1') else 0.9) for name, p in model.named_parameters())


@pytest.mark.parametrize('method', ['OREPA', 'RepVGG'])
def test_custom_l2_is_the_gradient_of_its_formula(method):
    model = repvgg(method)
    expected = copy.deepcopy(model)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)

    optim_wrapper = wrapper(model, custom_l2=True)
    found = settings(model, optim_wrapper)
    assert all((decay == 0) == ('branch_3x3' in name or 'branch_1x1' in name) for name, (_, decay) in found.items())
    optim_wrapper.update_params(model(x)[-1].square().mean())

    loss = expected(x)[-1].square().mean()
    for block in expected.modules():
        if type(block).__name__ == 'RepVGGBlock':
            wide, narrow = block.branch_3x3, block.branch_1x1
            factors = [(b.norm.weight / (b.norm.running_var + b.norm.eps).sqrt()).detach().view(-1, 1, 1, 1) for b in (wide, narrow)]
            for row in range(3):
                for column in range(3):
                    tap = wide.conv.weight[:, :, row : row + 1, column : column + 1]
                    if row == column == 1:
                        merged = tap * factors[0] + narrow.conv.weight * factors[1]
                        loss = loss + 0.005 * (merged**2 / (factors[0] ** 2 + factors[1] ** 2)).sum()
                    else:
                        loss = loss + 0.005 * (tap**2).sum()
    loss.backward()
    for (name, p), q in zip(expected.named_parameters(), model.parameters(), strict=True):
        step = p - 0.1 * (p.grad + found[name][1] * p)
        assert (step - q).abs().max() <= 1e-10 * q.abs().max(), name


def plain_formula(kernel: nn.Module) -> torch.Tensor:
    """The squeezed kernel by the formulas of the paper, differentiated by autograd alone."""
    if hasattr(kernel, 'stages'):
        first, *rest = [plain_formula(stage) for stage in kernel.stages]
        for stage in rest:
            first = compose(first, stage, kernel.groups)
        return first
    return squeeze_kxk(kernel._branches(), kernel.shape, kernel.groups)


def test_custom_l2_decays_squeezed_kernels():
    """The 7x7 stem, 3x3 and 1x1 layers, and a strength of their own for some of them."""
    model = MODELS.build(dict(type='OREPAResNet', depth=50, stem_channels=8, base_channels=4)).double()
    expected = copy.deepcopy(model)
    rules = dict(norm_decay_mult=0.0, custom_keys={'layer1': dict(lr_mult=0.5, decay_mult=2.0), 'layer4': dict(decay_mult=0.0)})
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    optim_wrapper = wrapper(model, custom_l2=True, **rules)
    found = settings(model, optim_wrapper)
    assert all(decay == 0 for name, (_, decay) in found.items() if '.kernel.' in name)
    optim_wrapper.update_params(model(x)[-1].square().mean())

    loss = expected(x)[-1].square().mean()
    layers = {name: layer for name, layer in expected.named_modules() if isinstance(layer, OREPAConv2d)}
    assert {layer.kernel_size[0] for layer in layers.values()} == {1, 3, 7}
    for name, layer in layers.items():
        strength = 0.0 if name.startswith('layer4') else 0.02 if name.startswith('layer1') else 0.01
        loss = loss + 0.5 * strength * plain_formula(layer.kernel).square().sum()
    loss.backward()
    for (name, p), q in zip(expected.named_parameters(), model.parameters(), strict=True):
        step = p - found[name][0] * (p.grad + found[name][1] * p)
        assert (step - q).abs().max() <= 1e-10 * q.abs().max(), name


@pytest.mark.parametrize('build', [lambda: repvgg('OREPA').float(), resnet], ids=['RepVGG blocks', 'OREPA layers'])
@pytest.mark.parametrize('fused', [True, False])
def test_custom_l2_is_not_divided_by_the_loss_scale(fused, build):
    """A fused optimizer is handed gradients that are still scaled."""
    models = [build()]
    models.append(copy.deepcopy(models[0]))
    x = torch.randn(2, 3, 32, 32)
    for model, scaled in zip(models, (True, False), strict=True):
        optimizer = wrapper(model, optimizer=dict(SGD, fused=fused), custom_l2=True).optimizer
        scaler = loss_scaler(init_scale=1024.0, enabled=scaled)
        scaler.scale(model(x)[-1].square().mean()).backward()
        scaler.step(optimizer)
    for (name, p), q in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert (p - q).abs().max() <= 1e-5 * q.abs().max(), name


def test_custom_l2_leaves_frozen_blocks_alone():
    model = MODELS.build(dict(type='OREPARepVGG', arch='A0', base_channels=16, frozen_stages=1))
    model.train()
    before = copy.deepcopy(model.state_dict())
    wrapper(model, custom_l2=True).update_params(model(torch.randn(2, 3, 32, 32))[-1].square().mean())
    for name, p in model.named_parameters():
        assert torch.equal(before[name], p) == name.startswith(('stem.', 'stage_1.')) or name.endswith('.freq'), name
    assert any(isinstance(m, OREPAConv2d) for m in model.stem.modules())


def test_custom_l2_says_when_it_makes_no_sense():
    with pytest.raises(ValueError, match='custom_l2=True is for OREPA convolutions and RepVGG blocks in training form'):
        wrapper(MODELS.build(dict(type='OREPAResNet', depth=18, base_channels=8, stem_channels=8, method='none')), custom_l2=True)
    for model in (repvgg('RepVGG'), resnet()):
        with pytest.raises(ValueError, match='needs a weight_decay'):
            wrapper(model, optimizer=dict(type='SGD', lr=0.1), custom_l2=True)
    stateless = dict(type='BN', track_running_stats=False)
    with pytest.raises(ValueError, match='running statistics of the norms in RepVGG blocks'):
        wrapper(MODELS.build(dict(type='OREPARepVGG', arch='A0', method='RepVGG', base_channels=8, norm_cfg=stateless)), custom_l2=True)


@pytest.mark.parametrize('conv', [None, 'OREPAConv2d', 'DBBConv2d', 'ExpandNetConv2d'])
def test_depthwise_layers_follow_their_rule_whatever_they_are(conv):
    cfg = conv and dict(type=conv, plain_sizes=(1,), **(dict(norm_cfg=dict(type='BN')) if conv[:3] == 'DBB' else {}))
    model = MODELS.build(dict(type='MobileNetV2', widen_factor=0.25, conv_cfg=cfg, out_indices=(0,)))
    found = settings(model, wrapper(model, dwconv_decay_mult=0.5, norm_decay_mult=0.0))
    layers = dict(model.named_modules())
    for name, (_, decay) in found.items():
        module = layers[name.rpartition('.')[0]]
        norm = isinstance(module, nn.BatchNorm2d)
        depthwise = any(
            getattr(layers[path], 'groups', 1) == getattr(layers[path], 'in_channels', 0) for path in layers if name.startswith(f'{path}.')
        )
        assert decay == pytest.approx(0.0 if norm else 0.005 if depthwise else 0.01), name


def test_what_a_custom_key_leaves_open_follows_the_other_rules():
    model = MODELS.build(dict(type='OREPAResNet', depth=18, stem_channels=8, base_channels=8))
    model.fc = nn.Linear(4, 2)
    keys = {'conv1': dict(lr_mult=0.1), 'bn1': dict(lr_mult=0.1), 'bn2': dict(decay_mult=0.5), 'fc': dict(decay_mult=0.5)}
    found = settings(model, wrapper(model, norm_decay_mult=0.0, bias_decay_mult=0.0, custom_keys=keys))
    expected = {
        'bn1.weight': (0.01, 0.0),
        'bn1.bias': (0.01, 0.0),
        'layer1.0.bn2.weight': (0.1, 0.005),
        'fc.weight': (0.1, 0.005),
        'fc.bias': (0.1, 0.005),
        'conv1.kernel.stages.0.origin': (0.01, 0.01),
    }
    assert {name: found[name] for name in expected} == {name: pytest.approx(value) for name, value in expected.items()}
