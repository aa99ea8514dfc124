"""Squeezing and its backward pass in a few launches on a GPU, in Triton; the numbers of :mod:`.squeeze`.

What lies between the matrix products is one pass forward and two backward: as single operations of torch it would be dozens of launches a
layer, and on a GPU a launch costs more than the arithmetic of most layers.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .squeeze import Branches
from .triton_programs import add_up, depthwise_gradient, gradients, sequence_gradients

BLOCK = 128  # input channels a program takes at a time
CHUNK = 32  # output channels that a program of the depthwise gradient adds up


def _contiguous(branches: Branches) -> Branches:
    return Branches._make(None if weight is None else weight.contiguous() for weight in branches)


def _options(branches: Branches, taps: int, inputs: int) -> dict[str, Any]:
    """What the programs are compiled for."""
    double = branches.scale.dtype == torch.float64
    return dict(
        TAPS=taps,
        ROWS=triton.next_power_of_2(taps),
        BLOCK=min(BLOCK, triton.next_power_of_2(inputs)),
        ACC=tl.float64 if double else tl.float32,
    )


def _places(branches: Branches, *names: str) -> dict[str, int]:
    """The row of ``scale`` of each branch, or -1."""
    there = list(branches.scales())
    return {name.upper(): there.index(name) if name in there else -1 for name in names}


def _all(branches: Branches, *names: str) -> list[Tensor]:
    """The weights by their names; the scales, which are not read, in the place of those that are not there."""
    return [branches.scale if (weight := getattr(branches, name)) is None else weight for name in names]


def _expansion(branches: Branches, inputs: int, groups: int) -> int:
    return 1 if branches.depthwise is None else branches.depthwise.shape[0] // (inputs * groups)


def squeeze_into(kernel: Tensor, branches: Branches, groups: int) -> None:
    """Write the squeezed kernel into ``kernel``, [O, I/g, k, k], dense in either memory format."""
    b, (out_channels, inputs, k, _) = _contiguous(branches), kernel.shape
    taps, product = k * k, b.scale
    if b.seq_1x1 is not None and b.seq_kxk is not None:
        rows = kernel.permute(0, 2, 3, 1)
        product = rows if rows.is_contiguous() else kernel.new_empty(rows.shape)
        second, first = b.seq_kxk.view(groups, out_channels // groups * taps, -1), b.seq_1x1.view(groups, -1, inputs)
        torch.bmm(second, first, out=product.view(groups, -1, inputs))
    options = _options(b, taps, inputs)
    with torch.cuda.device_of(kernel):
        add_up[(out_channels, triton.cdiv(inputs, options['BLOCK']))](
            kernel,
            product,
            *_all(b, 'origin', 'avg', 'freq', 'prior', 'point', 'depthwise', 'pointwise', 'scale'),
            out_channels,
            inputs,
            out_channels // groups,
            kernel.stride(0),
            kernel.stride(3),
            kernel.stride(1),
            **_places(b, 'origin', 'avg', 'freq', 'sequence', 'point', 'separable'),
            **options,
            EXPANSION=_expansion(b, inputs, groups),
        )


def gradient(grad: Tensor, branches: Branches, groups: int) -> Branches:
    """Gradients of all weights from that of the kernel, [O, I/g, k, k]; None for the prior, which is constant."""
    b, (out_channels, inputs, k, _) = _contiguous(branches), grad.shape
    taps, per_group = k * k, out_channels // groups
    rows = grad.permute(0, 2, 3, 1).contiguous()
    d = Branches._make(None if weight is None else torch.empty_like(weight) for weight in b)._replace(prior=None)
    options, expansion = _options(b, taps, inputs), _expansion(b, inputs, groups)
    with torch.cuda.device_of(grad):
        places = _places(b, 'origin', 'avg', 'freq', 'point', 'separable')
        if max(places.values()) >= 0:
            gradients[(out_channels,)](
                rows,
                *_all(b, 'origin', 'avg', 'freq', 'prior', 'point', 'depthwise', 'pointwise', 'scale'),
                *_all(d, 'origin', 'avg', 'freq', 'point', 'pointwise', 'scale'),
                out_channels,
                inputs,
                per_group,
                **places,
                **options,
                BLOCKS=triton.cdiv(inputs, options['BLOCK']),
                EXPANSION=expansion,
            )
        if b.seq_1x1 is not None and b.seq_kxk is not None:
            first, in_groups = b.seq_1x1.view(groups, -1, inputs), rows.view(groups, -1, inputs)
            product = torch.bmm(in_groups, first.transpose(1, 2)).view_as(b.seq_kxk)
            scaled, row = torch.empty_like(product), _places(b, 'sequence')['SEQUENCE']
            length = product.shape[1] * product.shape[2]
            sequence_gradients[(out_channels,)](
                product,
                b.seq_kxk,
                scaled,
                b.scale[row],
                d.scale[row],
                length,
                BLOCKS=triton.cdiv(length, 1024),
                BLOCK=1024,
                ACC=options['ACC'],
            )
            d_first = torch.bmm(scaled.view(groups, per_group * taps, -1).transpose(1, 2), in_groups)
            d = d._replace(seq_kxk=product, seq_1x1=d_first.view_as(b.seq_1x1))
        if b.depthwise is not None and b.pointwise is not None:
            parts = triton.cdiv(per_group, CHUNK)
            partial = b.depthwise.new_empty(parts, *b.depthwise.shape)
            block = min(32, options['BLOCK'])
            depthwise_gradient[(triton.cdiv(inputs, block), groups * expansion, parts)](
                rows,
                b.pointwise,
                b.scale[_places(b, 'separable')['SEPARABLE']],
                partial,
                inputs,
                per_group,
                len(b.depthwise),
                **dict(options, BLOCK=block),
                EXPANSION=expansion,
                CHUNK=CHUNK,
            )
            d = d._replace(depthwise=partial.sum(0) if parts > 1 else partial[0])
    return d
