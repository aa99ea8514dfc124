"""Full-width networks have the parameters that the description of the published ones implies; the docs' table is up to date."""

import count_parameters as tool
import doc_tables
import pytest
from conftest import ROOT
from mmpretrain.registry import MODELS
from torch import nn

DOCS = ROOT / 'docs' / 'architectures.md'


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
    options = dict(tool.backbones()[name, 'RepVGG' if repvgg else 'none'])
    options = dict(options, type=options['type'].removeprefix('OREPA'))
    del options['method']
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


@pytest.mark.parametrize('name', tool.PUBLISHED)
def test_published_architectures(name):
    assert tool.count(tool.backbones()[name, 'OREPA']) == published(name)


def test_the_table_is_up_to_date():
    lines = DOCS.read_text().splitlines()
    for row in tool.rows(('ResNet-34', 'ResNeXt-50 32x4d', 'RepVGG-A1')):
        assert f'| {" | ".join(row)} |' in lines
    listed = [line.split(' | ')[0].strip('| ') for line in lines if line.startswith('| ') and line.count('|') == 10]
    assert listed[2:] == list(tool.PUBLISHED)


def test_a_file_without_markers_is_refused():
    with pytest.raises(Exception, match='lacks the lines <!-- parameters: begin -->'):
        doc_tables.insert('# Title\n', 'parameters', 'table')
    text = 'a\n<!-- x: begin -->\nold\n<!-- x: end -->\nb\n'
    assert doc_tables.insert(text, 'x', 'new') == 'a\n<!-- x: begin -->\n\nnew\n\n<!-- x: end -->\nb\n'
