"""Squeezing with a closed-form backward pass: the numbers of :mod:`.squeeze`, faster and with next to nothing kept but the parameters.

With W the squeezed kernel, G its gradient, S and M the k x k and the 1x1 convolution in sequence, P_e and D_e the pointwise and depthwise
ones of one expansion channel, and p the position in the kernel::

    W    = s0 origin + s1 / (k k) avg + s2 freq prior + s3 S M + s4 point + s5 sum_e P_e D_e
    dS   = s3 (G M^T)                  ds3 = sum S * (G M^T)
    dM   = (s3 S)^T G
    dP_e = s5 sum_p (G D_e)            ds5 = sum P_e * sum_p (G D_e)
    dD_e = sum_o (s5 P_e G)

and so on: the gradient of a scale comes out of a product that is needed anyway, so no intermediate of the forward pass is kept.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .gpu import programs_for
from .precision import without_autocast
from .separable import DepthwiseGradient, add_separable, pointwise_gradient
from .squeeze import WEIGHTS, Branches, squeeze_kxk

# Elements of a kernel that all passes take at a time on a CPU: what stays in the cores' caches.
CHUNK = 1 << 20


def _rows(kernel: Tensor, groups: int) -> Tensor:
    """[O, I/g, k, k] as [g, O/g, k*k, I/g]; a view where the kernel is dense in either memory format."""
    out_channels, inputs, k, _ = kernel.shape
    return kernel.permute(0, 2, 3, 1).unflatten(0, (groups, out_channels // groups)).reshape(groups, -1, k * k, inputs)


def _in_groups(branches: Branches, shape: tuple[int, ...], groups: int) -> Branches:
    """The weights with groups and output channels in front and input channels last."""
    out_channels, inputs, k, _ = shape
    per_group, taps = out_channels // groups, k * k
    sizes = dict(
        origin=(per_group, taps, inputs),
        avg=(per_group, inputs),
        freq=(per_group, inputs),
        prior=(per_group, taps),
        seq_1x1=(-1, inputs),
        seq_kxk=(per_group, taps, -1),
        depthwise=(-1, inputs, taps),
        pointwise=(per_group, -1, inputs),
        point=(per_group, inputs),
    )
    there = {name: weight for name, weight in branches._asdict().items() if weight is not None}
    grouped = {name: there[name].reshape(groups, *size) for name, size in sizes.items() if name in there}
    if 'depthwise' in grouped:
        grouped['depthwise'] = grouped['depthwise'].transpose(2, 3).contiguous()
    return Branches(scale=branches.scale.view(-1, groups, per_group, 1), **grouped)


def _chunks(rows: Tensor) -> list[slice]:
    """Slices of the output channels of a group."""
    groups, channels, taps, inputs = rows.shape
    step = max(1, CHUNK // (groups * taps * inputs)) if rows.device.type == 'cpu' else channels
    return [slice(start, start + step) for start in range(0, channels, step)]


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Sums of products over all but the first two dimensions."""
    return torch.linalg.vecdot(a.flatten(2), b.flatten(2))


def _squeeze_into(kernel: Tensor, branches: Branches) -> None:
    """Write the kernel, [g, O/g, k*k, I/g], of weights in groups."""
    b: Any = branches
    taps, in_place = kernel.shape[2], kernel.stride(-1) == 1
    for c in _chunks(kernel):
        s = {name: row[:, c] for name, row in branches.scales().items()}
        w = kernel[:, c] if in_place else kernel.new_empty(kernel[:, c].shape)
        if 'sequence' in s:
            torch.bmm(b.seq_kxk[:, c].flatten(1, 2), b.seq_1x1, out=w.view(w.shape[0], -1, w.shape[3]))
            w.mul_(s['sequence'][:, :, None])
            if 'origin' in s:
                w.addcmul_(b.origin[:, c], s['origin'][:, :, None])
        elif 'origin' in s:
            torch.mul(b.origin[:, c], s['origin'][:, :, None], out=w)
        else:
            w.zero_()
        if 'separable' in s:
            add_separable(w, b.pointwise[:, c] * s['separable'][:, :, None], b.depthwise)
        if 'freq' in s:
            w.addcmul_((b.freq[:, c] * s['freq']).unsqueeze(2), b.prior[:, c].unsqueeze(3))
        if 'avg' in s:
            w.add_((b.avg[:, c] * (s['avg'] / taps)).unsqueeze(2))
        if 'point' in s:
            w[:, :, taps // 2].addcmul_(b.point[:, c], s['point'])
        if not in_place:
            kernel[:, c] = w


def _gradient(grad: Tensor, branches: Branches) -> Branches:
    """Gradients of weights in groups; None for the prior, which is constant."""
    b: Any = branches
    taps, scale = grad.shape[2], branches.scales()
    d: Any = Branches._make(None if weight is None else torch.empty_like(weight) for weight in branches)
    d = d._replace(scale=torch.empty_like(b.scale[..., 0]), prior=None)
    d_scale = d.scales()
    if d.seq_1x1 is not None:
        d.seq_1x1.zero_()
    depthwise = None if b.depthwise is None else DepthwiseGradient(b.depthwise, grad.shape[1])

    def store(branch: str, found: Tensor) -> None:
        """From the gradient that the last weight of a branch would have at a scale of one."""
        weight, row = WEIGHTS[branch][-1], s[branch]
        d_scale[branch][:, c] = _dot(found, getattr(b, weight)[:, c])
        torch.mul(found, row if found.dim() == row.dim() else row[:, :, None], out=getattr(d, weight)[:, c])

    for c in _chunks(grad):
        g, s = grad[:, c].contiguous(), {name: row[:, c] for name, row in scale.items()}
        if 'origin' in s:
            store('origin', g)
        if 'avg' in s:
            store('avg', g.mean(2))
        if 'freq' in s:
            store('freq', torch.einsum('gop,gopi->goi', b.prior[:, c], g))
        if 'sequence' in s:
            store('sequence', torch.bmm(g.flatten(1, 2), b.seq_1x1.transpose(1, 2)).view_as(b.seq_kxk[:, c]))
            scaled = b.seq_kxk[:, c] * s['sequence'][:, :, None]
            d.seq_1x1.baddbmm_(scaled.flatten(1, 2).transpose(1, 2), g.flatten(1, 2))
        if 'point' in s:
            store('point', g[:, :, taps // 2])
        if depthwise is not None:
            store('separable', pointwise_gradient(g, b.depthwise))
            depthwise.add(g, b.pointwise[:, c] * s['separable'][:, :, None])
    return d if depthwise is None else d._replace(depthwise=depthwise.total().transpose(2, 3))


def _by_autograd(
    formula: Callable[..., Tensor], saved: tuple[Tensor | None, ...], needed: tuple[bool, ...], grad: Tensor
) -> list[Tensor | None]:
    """Gradients of ``formula(*saved)`` that can be differentiated again."""
    with without_autocast(grad):
        kernel = formula(*saved)
        wanted = [t for t, need in zip(saved, needed, strict=True) if need and t is not None]
        found = iter(torch.autograd.grad(kernel, wanted, grad, create_graph=True))
    return [next(found) if need else None for need in needed]


class _SqueezeKxK(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, shape: tuple[int, int, int, int], groups: int, memory_format: torch.memory_format, *weights: Tensor | None
    ) -> Tensor:
        branches = Branches._make(weights)
        ctx.save_for_backward(*branches)
        ctx.shape, ctx.groups = shape, groups
        kernel = torch.empty(shape, device=branches.scale.device, dtype=branches.scale.dtype, memory_format=memory_format)
        programs = programs_for(kernel.device)
        if programs is not None:
            programs.squeeze_into(kernel, branches, groups)
        else:
            _squeeze_into(_rows(kernel, groups), _in_groups(branches, shape, groups))
        return kernel

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        branches, shape, groups = Branches(*ctx.saved_tensors), ctx.shape, ctx.groups
        if torch.is_grad_enabled():  # asked for with create_graph=True
            grads = _by_autograd(lambda *b: squeeze_kxk(Branches(*b), shape, groups), branches, ctx.needs_input_grad[3:], grad)
        else:
            grads = list(gradient_kxk(grad, branches, groups))
        return None, None, None, *grads


def gradient_kxk(grad: Tensor, branches: Branches, groups: int = 1) -> Branches:
    """The backward pass of :func:`.squeeze_kxk`: gradients of the weights, None for the prior, from that of the kernel [O, I/g, k, k]."""
    programs = programs_for(grad.device)
    with without_autocast(grad):
        if programs is not None:
            found = programs.gradient(grad, branches, groups)
        else:
            found = _gradient(_rows(grad, groups), _in_groups(branches, tuple(grad.shape), groups))
    return Branches._make(None if g is None or weight is None else g.reshape_as(weight) for g, weight in zip(found, branches, strict=True))


def closed_form_kxk(
    branches: Branches,
    shape: tuple[int, int, int, int],
    groups: int = 1,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """:func:`.squeeze_kxk` with a closed-form backward pass, and the result in ``memory_format``."""
    return _SqueezeKxK.apply(tuple(shape), groups, memory_format, *branches)
