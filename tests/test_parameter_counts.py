"""Full-width networks have the parameters that the description of the published ones implies; the docs' table is up to date."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / 'docs' / 'architectures.md'


@pytest.fixture(scope='module')
def tool():
    spec = importlib.util.spec_from_file_location('count_parameters', ROOT / '.dev_scripts' / 'count_parameters.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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


def resnet(depth: int, base: int = 64, groups: int = 1, width: int = 64) -> tuple[int, int]:
    """Convolutions of torchvision's layout with their norms: parameters in training form, and of the stock network."""
    blocks = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}[depth]
    bottleneck = depth >= 50
    convs = [(3, base, 7, 1, True)]
    i = base
    for stage, count in enumerate(blocks):
        channels = base * 2**stage
        inner, out = channels * width * groups // 64 if groups > 1 else channels, channels * (4 if bottleneck else 1)
        for block in range(count):
            if bottleneck:
                convs += [(i, inner, 1, 1, True), (inner, inner, 3, groups, True), (inner, out, 1, 1, True)]
            else:
                convs += [(i, out, 3, 1, True), (out, out, 3, 1, True)]
            if block == 0 and i != out:
                convs.append((i, out, 1, 1, bottleneck))
            i = out
    head = 1000 * i + 1000
    training = sum((orepa(a, o, k, g) if replaced else a * o) + 2 * o for a, o, k, g, replaced in convs) + head
    deployed = sum(a * o // g * k * k + 2 * o for a, o, k, g, _ in convs) + head  # the stock network
    return training, deployed


def repvgg(widths: tuple[float, ...]) -> tuple[int, int]:
    channels = [min(64, int(64 * widths[0]))]
    convs = [(3, channels[0], False)]
    for stage, count in enumerate((2, 4, 14, 1)):
        for block in range(count):
            out = int(64 * 2**stage * widths[stage])
            convs.append((convs[-1][1], out, block > 0))
    head = 1000 * convs[-1][1] + 1000
    training = sum(orepa(i, o, 3, point=False) + i * o + (6 if identity else 4) * o for i, o, identity in convs) + head
    return training, sum(i * o * 9 + o for i, o, _ in convs) + head


EXPECTED = {
    'ResNet-18': resnet(18),
    'ResNet-34': resnet(34),
    'ResNet-50': resnet(50),
    'ResNet-101': resnet(101),
    'WideResNet-18 x2': resnet(18, base=128),
    'ResNeXt-50 32x4d': resnet(50, groups=32, width=4),
    'RepVGG-A0': repvgg((0.75, 0.75, 0.75, 2.5)),
    'RepVGG-A1': repvgg((1, 1, 1, 2.5)),
    'RepVGG-A2': repvgg((1.5, 1.5, 1.5, 2.75)),
}


@pytest.mark.parametrize('name', EXPECTED)
def test_published_architectures(name, tool):
    assert tool.count(tool.backbones()[name, 'OREPA']) == EXPECTED[name]
    assert set(EXPECTED) == set(tool.PUBLISHED)


def test_the_table_is_up_to_date(tool):
    lines = DOCS.read_text().splitlines()
    for row in tool.rows(('ResNet-34', 'ResNeXt-50 32x4d', 'RepVGG-A1')):
        assert f'| {" | ".join(row)} |' in lines
    assert [line.split(' | ')[0].strip('| ') for line in lines if line.startswith('| ') and line.count('|') == 9][2:] == list(
        tool.PUBLISHED
    )


def test_a_file_without_markers_is_refused():
    import doc_tables

    with pytest.raises(Exception, match='lacks the lines <!-- parameters: begin -->'):
        doc_tables.insert('# Title\n', 'parameters', 'table')
    text = 'a\n<!-- x: begin -->\nold\n<!-- x: end -->\nb\n'
    assert doc_tables.insert(text, 'x', 'new') == 'a\n<!-- x: begin -->\n\nnew\n\n<!-- x: end -->\nb\n'
