"""Full-width networks have the parameters that the description of the published ones implies."""

import doc_tables
import pytest
import torch
from mmdet.registry import MODELS as MMDET
from mmpretrain.registry import MODELS
from torch import nn

import orepa_mm

PUBLISHED = {  # networks whose weights the authors published
    **{f'ResNet-{depth}': dict(type='OREPAResNet', depth=depth) for depth in (18, 34, 50, 101)},
    'WideResNet-18 x2': dict(type='OREPAResNet', depth=18, stem_channels=128, base_channels=128),
    'ResNeXt-50 32x4d': dict(type='OREPAResNeXt', depth=50),
    **{f'RepVGG-{arch}': dict(type='OREPARepVGG', arch=arch) for arch in ('A0', 'A1', 'A2')},
}


def count(config: dict) -> tuple[int, int]:
    """Parameters of a backbone with a linear head for 1000 classes, in training form and re-parameterized."""
    with torch.device('meta'):  # shapes alone: no weights are drawn
        backbone = MMDET.build(dict(config))
        channels = backbone(torch.empty(1, 3, 64, 64))[-1].shape[1]
        model = nn.ModuleDict(dict(backbone=backbone, head=nn.Linear(channels, 1000)))
        model.train(False)
        training = sum(p.numel() for p in model.parameters())
        orepa_mm.reparameterize(model)
    return training, sum(p.numel() for p in model.parameters())


def orepa(i: int, o: int, k: int, g: int = 1, point: bool = True) -> int:
    """Parameters of one OREPA convolution, branch by branch."""
    if k == 1:
        first, second = (i * i, o * i) if o > i else (o * i, o * o)
        return o * i + first + second + 2 * o
    if k == 7:
        return sum(orepa(a, o, 3) for a in (i, o, o))
    t = i if g <= 4 else 2 * i
    plain = o * i // g * k * k
    one_by_one = (3 if point else 2) * o * i // g  # before pooling, before the frequency prior, and on its own
    sequence = t * i // g + o * t // g * k * k
    separable = 8 * i * k * k + o * 8 * i // g
    return plain + one_by_one + sequence + separable + (6 if point else 5) * o


def published(name: str) -> tuple[int, int]:
    """Of the stock network, where the convolutions that the publication replaces have their branches, and of what is deployed."""
    repvgg = name.startswith('RepVGG')
    options = dict(PUBLISHED[name], type=PUBLISHED[name]['type'].removeprefix('OREPA'))
    stock = MODELS.build(dict(options))
    deployed = MODELS.build(dict(options, deploy=True)) if repvgg else stock
    channels = [module.num_features for module in stock.modules() if isinstance(module, nn.BatchNorm2d)][-1]
    plain, deployed = (sum(p.numel() for p in each.parameters()) + 1000 * channels + 1000 for each in (stock, deployed))
    more = 0
    for path, conv in stock.named_modules():
        left = 'branch_1x1' in path or ('downsample' in path and options['depth'] < 50)
        if isinstance(conv, nn.Conv2d) and not left:
            more += orepa(conv.in_channels, conv.out_channels, conv.kernel_size[0], conv.groups, not repvgg) - conv.weight.numel()
    return plain + more, deployed


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_architectures(name):
    assert count(PUBLISHED[name]) == published(name)


def test_a_file_without_markers_is_refused():
    with pytest.raises(Exception, match='lacks the lines <!-- parameters: begin -->'):
        doc_tables.insert('# Title\n', 'parameters', 'table')
    text = 'a\n<!-- x: begin -->\nold\n<!-- x: end -->\nb\n'
    assert doc_tables.insert(text, 'x', 'new') == 'a\n<!-- x: begin -->\n\nnew\n\n<!-- x: end -->\nb\n'
