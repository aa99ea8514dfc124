"""Whole published networks: their weights under this project's names give their logits, and go back bit for bit."""

import importlib
from pathlib import Path

import pytest
import torch
from method_case import relative
from torch import nn

import orepa_mm
from orepa_mm.checkpoints.architecture import output_channels, recognise
from orepa_mm.checkpoints.published import deployed_names, export_network, import_network
from orepa_mm.checkpoints.reading import state_dict_of
from orepa_mm.errors import LayoutError
from orepa_mm.layers import ReparameterizableConv2d

FOLDER = Path(__file__).parent / 'data' / 'published'
NETWORKS = sorted(path.name.removesuffix('.pth.tar') for path in FOLDER.glob('*.pth.tar'))


def load(name: str) -> tuple[dict, dict]:
    state = state_dict_of(torch.load(FOLDER / f'{name}.pth.tar', weights_only=True))
    return state, torch.load(FOLDER / f'{name}.reference.pth', weights_only=True)


def backbone_config(config: dict, width_per_group: str = 'width_per_group') -> dict:
    """The MM backbone of a reference network's description; mmdet and mmseg call a ResNeXt's width ``base_width``."""
    if config['method'] == 'OREPA_VGG':
        arch = dict(num_blocks=config['num_blocks'], width_factor=config['width_factor'], group_layer_map=None, se_cfg=None)
        return dict(type='OREPARepVGG', arch=arch)
    base = int(64 * config['width'])
    backbone = dict(type='OREPAResNet', depth=config['depth'], method=config['method'], stem_channels=base, base_channels=base)
    if 'groups' in config:
        backbone.update(
            {'type': 'OREPAResNeXt', 'groups': config['groups'], width_per_group: int(config['width_per_group'] * config['width'])}
        )
    return backbone


class Classifier(nn.Module):
    """The layout of an mmpretrain ``ImageClassifier``: backbone and linear head."""

    def __init__(self, backbone: dict, channels: int, num_classes: int) -> None:
        from mmpretrain.registry import MODELS

        super().__init__()
        self.backbone = MODELS.build(backbone)
        self.head = nn.Module()
        self.head.fc = nn.Linear(channels, num_classes)

    def forward(self, x):
        return self.head.fc(self.backbone(x)[-1].mean((2, 3)))


def classifier(name: str) -> Classifier:
    """A published network with its weights, in evaluation mode."""
    state, reference = load(name)
    model = Classifier(backbone_config(reference['config']), state['linear.weight'].shape[1], len(reference['logits'][0]))
    model.load_state_dict(import_network(state))  # strict: no key missing, none unexpected
    return model.eval()


# The references were computed in float32. On the 50-layer nets, whose random weights amplify rounding, they are themselves up to 9e-5 of
# their scale away from the float64 result, on the RepVGG of 22 layers 1.6e-5 and on the DBB net, whose deployed kernels are merged in
# float32, 1e-5; a second float32 computation adds as much.
def tolerance_of(name: str) -> float:
    return 2e-4 if '50_' in name else 3e-5 if 'repvgg' in name or 'dbb' in name else 1e-5


def same(actual: dict, expected: dict) -> None:
    """Bit for bit, but for the sixth row of a RepVGG ``vector``, which nothing reads."""
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        assert actual[key].shape == value.shape and actual[key].dtype == value.dtype, key
        read = slice(5) if '.rbr_dense.vector' in key else Ellipsis
        assert torch.equal(actual[key][read], value[read]), key


@pytest.mark.parametrize('name', NETWORKS)
def test_logits_in_both_forms_and_back_bit_for_bit(name):
    state, reference = load(name)
    model, inputs, logits, tolerance = classifier(name), reference['input'], reference['logits'], tolerance_of(name)
    assert relative(model(inputs), logits) < tolerance
    exact = model.double()(inputs.double())
    assert relative(exact, logits) < tolerance
    orepa_mm.reparameterize(model)
    assert relative(model(inputs.double()), exact) < 1e-10
    assert relative(model.float()(inputs), logits) < tolerance
    weights = import_network(state)
    same(export_network(weights), state)
    for scope in ('mmdet', 'mmseg'):
        net = importlib.import_module(f'{scope}.registry').MODELS.build(backbone_config(reference['config'], 'base_width'))
        net.load_state_dict({key.removeprefix('backbone.'): value for key, value in weights.items() if key.startswith('backbone.')})


@pytest.mark.parametrize('key', ['stage9.0.conv1.conv.weight', 'stage1.0.conv1.surprise', 'backbone.conv1.weight'])
def test_unknown_keys_are_named(key):
    state, _ = load('resnet18_w0.125_orepa')
    with pytest.raises(LayoutError, match=key.split('.')[-1]):
        import_network(dict(state, **{key: torch.ones(1)}))


def deployed_form(name: str) -> tuple[dict, dict]:
    """A published network re-parameterized, under the names the published implementations deploy with."""
    (state, reference), model = load(name), classifier(name)
    branched = {path for path, module in model.backbone.named_modules() if isinstance(module, ReparameterizableConv2d)}
    orepa_mm.reparameterize(model)
    published = {}
    for path, module in model.backbone.named_modules():
        if not isinstance(module, nn.Conv2d):
            continue
        weight, bias = module.weight, module.bias
        parent, _, leaf = path.rpartition('.')
        if bias is None:  # published deployed networks have no norms
            follower = f'{parent}.1' if leaf == '0' else f'{parent}.bn{leaf[-1]}'.lstrip('.')
            norm = model.backbone.get_submodule(follower)
            factor = norm.weight / (norm.running_var + norm.eps).sqrt()
            weight, bias = weight * factor.view(-1, 1, 1, 1), norm.bias - norm.running_mean * factor
        if 'branch_reparam' in path:
            location, layer = ('stage0' if path.startswith('stem') else parent.replace('stage_', 'stage')), 'rbr_reparam'
        else:
            location = path.replace('layer', 'stage').replace('downsample.0', 'shortcut') if parent else 'stage0.conv1'
            kind = 'dbb_reparam' if 'dbb' in name else 'or_large_reparam' if not parent else 'orepa_reparam'
            layer = kind if path in branched else 'conv'
        published |= {f'{location}.{layer}.weight': weight.detach(), f'{location}.{layer}.bias': bias.detach()}
    return published | {key: value for key, value in state.items() if key.startswith('linear.')}, reference


@pytest.mark.parametrize('name', NETWORKS)
def test_deployed_sources(name):
    """They become the stock network, give the same logits and go back bit for bit."""
    state, reference = deployed_form(name)
    converted, names = import_network(state), deployed_names(state)
    config = recognise(converted)
    assert config['method'] in ('none', 'RepVGG') and config.get('deploy', False) == ('repvgg' in name)
    model = Classifier(config, output_channels(config), len(reference['logits'][0]))
    model.load_state_dict(converted)
    assert relative(model.eval()(reference['input']), reference['logits']) < tolerance_of(name)
    same(export_network(converted, names), state)


@pytest.mark.parametrize('arch', ['A0', 'B0', 'B1g4', 'D2se'])
def test_repvgg_layout_of_its_own_publication(arch):
    from mmpretrain.models.backbones import RepVGG

    settings = RepVGG.arch_settings[arch]
    narrow = dict(settings, width_factor=[1 / 8] * 4)
    model = Classifier(dict(type='OREPARepVGG', arch=narrow, method='RepVGG'), 64, 10)
    published = export_network(model.state_dict())
    names = {'stage0.rbr_dense.conv.weight', 'stage1.0.rbr_1x1.bn.running_var', 'stage1.1.rbr_identity.weight', 'linear.bias'}
    assert names <= published.keys()
    assert ('stage2.3.se.down.weight' in published) == (arch == 'D2se')
    converted = import_network(published)
    same(converted, model.state_dict())
    found = recognise(converted)['arch']
    assert found['num_blocks'] == settings['num_blocks'] and found['width_factor'] == narrow['width_factor']
    declared = {i: g for i, g in (settings['group_layer_map'] or {}).items() if i <= sum(settings['num_blocks'])}
    assert (found['group_layer_map'] or {}) == declared
