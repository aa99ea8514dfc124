"""What the branches of a deep linear stem add to its kernel, and its picture: tools/analysis_tools/plot_stem.py."""

import functools

import plot_stem
import pytest
import torch
from conftest import done, refused
from diversity import stem_parts
from torch import nn

from orepa_mm import OREPAConv2d

EXACT = 1e-10  # of the kernel's scale, in float64: a few hundred products and sums


def stem(**options) -> OREPAConv2d:
    conv = OREPAConv2d(3, 10, 7, bias=False, dtype=torch.float64, **options)
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return conv


@pytest.mark.parametrize('options', [{}, dict(branches='light'), dict(plain_stages=True)], ids=str)
def test_the_parts_of_every_stage_add_up_to_the_kernel(options):
    conv = stem(**options)
    parts = stem_parts(conv.kernel)
    assert len(parts) == 3
    for row, stage in zip(parts, conv.kernel.stages, strict=True):
        assert set(row) == set(getattr(stage, 'branches', ['plain']))
        whole = functools.reduce(torch.add, row.values())
        assert (whole - conv.weight).abs().max() <= EXACT * conv.weight.abs().max()


def test_a_branch_that_is_switched_off_adds_nothing():
    conv = stem()
    nn.init.zeros_(conv.kernel.stages[1].scale.data[2])
    norms = [{name: part.norm() for name, part in row.items()} for row in stem_parts(conv.kernel)]
    name = conv.kernel.stages[1].branches[2]
    assert norms[1][name] == 0 and min(norms[0].values()) > 0 and min(norms[2].values()) > 0


def test_the_tool(tools, tmp_path):
    conv, out = stem(), tmp_path / 'stem.png'
    torch.save({f'backbone.conv1.{key}': value for key, value in conv.state_dict().items()}, tmp_path / 'stem.pth')
    done(tools.run('tools/analysis_tools/plot_stem', tmp_path / 'stem.pth', out))
    assert out.read_bytes().startswith(b'\x89PNG')
    out.unlink()
    torch.save({'backbone.conv1.weight': conv.weight.detach()}, tmp_path / 'plain.pth')
    refused(tools.run('tools/analysis_tools/plot_stem', tmp_path / 'plain.pth', out), 'plain.pth: holds no deep linear stem')
    assert not out.exists()


def test_tiles_have_the_weights_in_their_colours():
    kernel = torch.zeros(5, 3, 7, 7)
    kernel[4, 1, 2, 3] = -2.0
    picture = plot_stem.tiles(kernel)
    assert picture.shape == (17, 25, 3)  # 2 rows of 3 tiles
    assert picture[1 + 8 + 2, 1 + 8 + 3].tolist() == [0.5, 0.0, 0.5] and picture[1:8, 1:8].unique().tolist() == [0.5]
    assert plot_stem.tiles(kernel[:, :1]).shape == (17, 25, 3)
