"""Whole published networks: their weights under this project's names give their logits, and go back bit for bit."""

from pathlib import Path

import pytest
import torch
from torch import nn

import orepa_mm
from orepa_mm.engine.checkpoint import state_dict_of
from orepa_mm.engine.published import UnknownKeyError, export_resnet, import_resnet

FOLDER = Path(__file__).parent / 'data' / 'published'
NETWORKS = sorted(path.name.removesuffix('.pth.tar') for path in FOLDER.glob('*.pth.tar'))


def load(name: str) -> tuple[dict, dict]:
    state = state_dict_of(torch.load(FOLDER / f'{name}.pth.tar', weights_only=True))
    return state, torch.load(FOLDER / f'{name}.reference.pth', weights_only=True)


class Classifier(nn.Module):
    """The layout of an mmpretrain ``ImageClassifier``: backbone and linear head."""

    def __init__(self, config: dict) -> None:
        from mmpretrain.registry import MODELS

        super().__init__()
        base = int(64 * config['width'])
        backbone = dict(type='OREPAResNet', depth=config['depth'], method=config['method'], stem_channels=base, base_channels=base)
        if 'groups' in config:
            width = int(config['width_per_group'] * config['width'])
            backbone.update(type='OREPAResNeXt', groups=config['groups'], width_per_group=width)
        self.backbone = MODELS.build(backbone)
        self.head = nn.Module()
        self.head.fc = nn.Linear(self.backbone.feat_dim, config['num_classes'])

    def forward(self, x):
        return self.head.fc(self.backbone(x)[-1].mean((2, 3)))


def test_the_networks_are_there():
    assert len(NETWORKS) == 4


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual.double() - expected.double()).abs().max() / expected.double().abs().max()).item()


# The references were computed in float32. On the 50-layer nets, whose random weights amplify rounding, they are themselves up to 9e-5 of
# their scale away from the float64 result; a second float32 computation adds as much.
TOLERANCE = {18: 1e-5, 50: 2e-4}


@pytest.mark.parametrize('name', NETWORKS)
def test_logits_in_both_forms(name):
    state, reference = load(name)
    model = Classifier(reference['config'])
    model.load_state_dict(import_resnet(state))  # strict: no key missing, none unexpected
    model.eval()
    tolerance = TOLERANCE[reference['config']['depth']]
    assert relative(model(reference['input']), reference['logits']) < tolerance
    exact = model.double()(reference['input'].double())
    assert relative(exact, reference['logits']) < tolerance
    orepa_mm.reparameterize(model)
    assert relative(model(reference['input'].double()), exact) < 1e-10
    assert relative(model.float()(reference['input']), reference['logits']) < tolerance


@pytest.mark.parametrize('name', NETWORKS)
def test_back_and_forth_bit_for_bit(name):
    state, _ = load(name)
    again = export_resnet(import_resnet(state))
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], value) and again[key].dtype == value.dtype for key, value in state.items())


@pytest.mark.parametrize('name', NETWORKS)
@pytest.mark.parametrize('scope', ['mmdet', 'mmseg'])
def test_backbones_of_the_other_toolboxes_take_it(name, scope):
    import importlib

    state, reference = load(name)
    config = reference['config']
    base = int(64 * config['width'])
    options = dict(depth=config['depth'], method=config['method'], stem_channels=base, base_channels=base)
    kind = 'OREPAResNet'
    if 'groups' in config:
        kind = 'OREPAResNeXt'
        options.update(groups=config['groups'], base_width=int(config['width_per_group'] * config['width']))
    net = importlib.import_module(f'{scope}.registry').MODELS.build(dict(type=kind, **options))
    weights = {key.removeprefix('backbone.'): value for key, value in import_resnet(state).items() if key.startswith('backbone.')}
    net.load_state_dict(weights)


@pytest.mark.parametrize('key', ['stage9.0.conv1.conv.weight', 'stage1.0.conv1.surprise', 'backbone.conv1.weight'])
def test_unknown_keys_are_named(key):
    state, _ = load('resnet18_w0.125_orepa')
    with pytest.raises(UnknownKeyError, match=key.split('.')[-1]):
        import_resnet(dict(state, **{key: torch.ones(1)}))
