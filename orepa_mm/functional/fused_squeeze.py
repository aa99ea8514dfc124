"""Squeezing with a closed-form backward pass: the numbers of :mod:`.squeeze`, faster and with nothing kept but the parameters.

All work is on kernels laid out [g, O/g, k*k, I/g], which is the memory of a ``channels_last`` kernel: there the k x k convolution after the
1x1 one is a matrix product without transpositions, and every other branch multiplies contiguous rows of input channels.

With W the squeezed kernel, G its gradient, S and M the k x k and the 1x1 convolution in sequence, P_e and D_e the pointwise and depthwise
ones of one expansion channel, and p the position in the kernel::

    W    = s0 origin + s1 / (k k) avg + s2 freq prior + s3 S M + s4 point + s5 sum_e P_e D_e
    dS   = s3 (G M^T)                  ds3 = sum S * (G M^T)
    dM   = (s3 S)^T G
    dP_e = s5 sum_p (G D_e)            ds5 = sum P_e * sum_p (G D_e)
    dD_e = sum_o (s5 P_e G)

and so on: the gradient of a scale comes out of a product that is needed anyway, so no intermediate of the forward pass is kept.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import compiled_squeeze
from .precision import without_autocast
from .separable import DepthwiseGradient, add_separable, pointwise_gradient

# Elements of a kernel that all passes take at a time on a CPU: what stays in the cores' caches.
CHUNK = 1 << 20


def _rows(kernel: Tensor, groups: int) -> Tensor:
    """[O, C/g, k, k] as [g, O/g, k*k, C/g]; contiguous where the memory is ``channels_last``, a view at any rate."""
    out_channels, inputs, k, _ = kernel.shape
    return kernel.permute(0, 2, 3, 1).unflatten(0, (groups, out_channels // groups)).reshape(groups, -1, k * k, inputs)


def _kernel(rows: Tensor, k: int) -> Tensor:
    """The inverse of :func:`_rows`, a view of contiguous rows."""
    return rows.reshape(-1, k, k, rows.shape[-1]).permute(0, 3, 1, 2)


def _chunks(rows: Tensor) -> list[slice]:
    """Slices of the output channels of a group."""
    groups, channels, taps, inputs = rows.shape
    step = max(1, CHUNK // (groups * taps * inputs)) if rows.device.type == 'cpu' else channels
    return [slice(start, start + step) for start in range(0, channels, step)]


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Sums of products over all but the first two dimensions."""
    return torch.linalg.vecdot(a.flatten(2), b.flatten(2))


class _SqueezeKxK(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scale, origin, avg, freq, prior, seq_1x1, identity, seq_kxk, dw, pw, point, groups, memory_format, compiled):
        saved = scale, origin, avg, freq, prior, seq_1x1, identity, seq_kxk, dw, pw, point
        ctx.save_for_backward(*saved)
        ctx.groups, ctx.compiled = groups, compiled
        if compiled:
            rows = compiled_squeeze.squeeze_rows(*_in_rows(saved, groups))
            return _kernel(rows, origin.shape[-1]).contiguous(memory_format=memory_format)
        kernel = torch.empty_like(origin, memory_format=memory_format)
        _squeeze_into(_rows(kernel, groups), *_in_rows(saved, groups))
        return kernel

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        saved, groups = ctx.saved_tensors, ctx.groups
        gradient_rows = compiled_squeeze.gradient_rows if ctx.compiled else _gradient_rows
        with without_autocast(grad):
            grads = gradient_rows(_rows(grad, groups), *_in_rows(saved, groups))
        scale, origin, avg, freq, _, seq_1x1, _, seq_kxk, dw, pw, point = saved
        k = origin.shape[-1]
        shaped = dict(
            scale=lambda g: g.reshape_as(scale),
            origin=lambda g: _kernel(g, k),
            avg=lambda g: g.reshape_as(avg),
            freq=lambda g: g.reshape_as(freq),
            seq_1x1=lambda g: g.reshape_as(seq_1x1),
            seq_kxk=lambda g: _kernel(g, k),
            dw=lambda g: g.transpose(2, 3).reshape_as(dw),
            pw=lambda g: g.reshape_as(pw),
            point=lambda g: g.reshape_as(point),
        )
        names = ('scale', 'origin', 'avg', 'freq', 'prior', 'seq_1x1', 'identity', 'seq_kxk', 'dw', 'pw', 'point')
        return *(shaped[name](grads[name]) if grads.get(name) is not None else None for name in names), None, None, None


def _in_rows(saved, groups: int) -> tuple[Tensor | None, ...]:
    """The parameters with groups and output channels in front and input channels last."""
    scale, origin, avg, freq, prior, seq_1x1, identity, seq_kxk, dw, pw, point = saved
    per_group, inputs = origin.shape[0] // groups, origin.shape[1]
    return (
        scale.view(-1, groups, per_group, 1),
        _rows(origin, groups).contiguous(),
        avg.reshape(groups, per_group, inputs),
        freq.reshape(groups, per_group, inputs),
        prior.reshape(groups, per_group, -1),
        (seq_1x1 + identity).reshape(groups, -1, inputs),
        _rows(seq_kxk, groups).contiguous(),
        dw.reshape(groups, -1, inputs, origin.shape[-1] ** 2).transpose(2, 3).contiguous(),
        pw.reshape(groups, per_group, -1, inputs),
        None if point is None else point.reshape(groups, per_group, inputs),
    )


def _squeeze_into(kernel, scale, origin, avg, freq, prior, seq_1x1, seq_kxk, dw, pw, point) -> None:
    *s, s_separable = scale.unbind(0)  # the 1x1 branch has the last but one where there is one
    taps = origin.shape[2]
    for c in _chunks(origin):
        w = torch.bmm(seq_kxk[:, c].flatten(1, 2), seq_1x1).view_as(origin[:, c])
        w.mul_(s[3][:, c, None]).addcmul_(origin[:, c], s[0][:, c, None])
        add_separable(w, pw[:, c] * s_separable[:, c, None], dw)
        w.addcmul_((freq[:, c] * s[2][:, c]).unsqueeze(2), prior[:, c].unsqueeze(3))
        w.add_((avg[:, c] * (s[1][:, c] / taps)).unsqueeze(2))
        if point is not None:
            w[:, :, taps // 2].addcmul_(point[:, c], s[4][:, c])
        kernel[:, c] = w


def _gradient_rows(grad, scale, origin, avg, freq, prior, seq_1x1, seq_kxk, dw, pw, point) -> dict[str, Tensor | None]:
    *s, s_separable = scale.unbind(0)
    taps = origin.shape[2]
    d_scale = torch.empty_like(scale[..., 0])
    empty = dict(origin=origin, avg=avg, freq=freq, seq_kxk=seq_kxk, pw=pw)
    d = {name: torch.empty_like(like) for name, like in empty.items()}
    d |= dict(seq_1x1=torch.zeros_like(seq_1x1), point=None if point is None else torch.empty_like(point))
    d_dw = DepthwiseGradient(dw, origin.shape[1])
    for c in _chunks(origin):
        g = grad[:, c].contiguous()
        torch.mul(g, s[0][:, c, None], out=d['origin'][:, c])
        d_scale[0, :, c] = _dot(g, origin[:, c])

        pooled = g.sum(2)
        torch.mul(pooled, s[1][:, c] / taps, out=d['avg'][:, c])
        d_scale[1, :, c] = _dot(pooled, avg[:, c]) / taps

        filtered = torch.einsum('gop,gopi->goi', prior[:, c], g)
        torch.mul(filtered, s[2][:, c], out=d['freq'][:, c])
        d_scale[2, :, c] = _dot(filtered, freq[:, c])

        sequence = torch.bmm(g.flatten(1, 2), seq_1x1.transpose(1, 2)).view_as(seq_kxk[:, c])
        d_scale[3, :, c] = _dot(sequence, seq_kxk[:, c])
        torch.mul(sequence, s[3][:, c, None], out=d['seq_kxk'][:, c])
        torch.mul(seq_kxk[:, c], s[3][:, c, None], out=sequence)
        d['seq_1x1'].baddbmm_(sequence.flatten(1, 2).transpose(1, 2), g.flatten(1, 2))

        if point is not None:
            centre = g[:, :, taps // 2]
            torch.mul(centre, s[4][:, c], out=d['point'][:, c])
            d_scale[4, :, c] = _dot(centre, point[:, c])

        d_pw = pointwise_gradient(g, dw)
        d_scale[-1, :, c] = _dot(d_pw, pw[:, c])
        torch.mul(d_pw, s_separable[:, c, None], out=d['pw'][:, c])
        d_dw.add(g, pw[:, c] * s_separable[:, c, None])
    return dict(d, dw=d_dw.total(), scale=d_scale)


def fused_squeeze_kxk(
    scale: Tensor,
    origin: Tensor,
    avg: Tensor,
    freq: Tensor,
    prior: Tensor,
    seq_1x1: Tensor,
    identity: Tensor,
    seq_kxk: Tensor,
    dw: Tensor,
    pw: Tensor,
    point: Tensor | None = None,
    groups: int = 1,
    memory_format: torch.memory_format = torch.contiguous_format,
    compiled: bool = False,
) -> Tensor:
    """:func:`.squeeze_kxk` with a closed-form backward pass; once differentiable.

    Args:
        identity: Added to ``seq_1x1``.
        memory_format: Of the result.
        compiled: Use :mod:`.compiled_squeeze`.
        others: As :func:`.squeeze_kxk`; ``origin`` and ``seq_kxk`` are read without a copy where they are ``channels_last``.

    Returns:
        Kernel [O, I/g, k, k].
    """
    return _SqueezeKxK.apply(scale, origin, avg, freq, prior, seq_1x1, identity, seq_kxk, dw, pw, point, groups, memory_format, compiled)


class _Squeeze1x1(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scale, origin, first, second, groups, compiled):
        ctx.save_for_backward(scale, origin, first, second)
        ctx.groups, ctx.compiled = groups, compiled
        squeeze = compiled_squeeze.squeeze_1x1_rows if compiled else _squeeze_1x1_rows
        return squeeze(*_pointwise_in_groups(scale, origin, first, second, groups)).view_as(origin)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        saved = ctx.saved_tensors
        in_groups = _pointwise_in_groups(*saved, ctx.groups)
        gradient = compiled_squeeze.gradient_1x1_rows if ctx.compiled else _gradient_1x1_rows
        with without_autocast(grad):
            grads = gradient(grad.reshape_as(in_groups[2]), *in_groups)
        return *(g.view_as(parameter) for g, parameter in zip(grads, saved, strict=True)), None, None


def _squeeze_1x1_rows(s0, s1, plain, inner, outer) -> Tensor:
    return torch.bmm(outer, inner).mul_(s1).addcmul_(plain, s0)


def _gradient_1x1_rows(grad, s0, s1, plain, inner, outer) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    d_inner = torch.bmm((outer * s1).transpose(1, 2), grad)
    d_outer = torch.bmm(grad, inner.transpose(1, 2))
    d_scale = torch.stack([torch.linalg.vecdot(grad, plain), torch.linalg.vecdot(d_outer, outer)])
    return d_scale, grad * s0, d_inner, d_outer.mul_(s1)


def _pointwise_in_groups(scale, origin, first, second, groups: int) -> tuple[Tensor, ...]:
    s0, s1 = scale.view(2, groups, -1, 1).unbind(0)
    per_group = origin.shape[0] // groups
    return (
        s0,
        s1,
        origin.reshape(groups, per_group, -1),
        first.reshape(groups, -1, origin.shape[1]),
        second.reshape(groups, per_group, -1),
    )


def fused_squeeze_1x1(scale: Tensor, origin: Tensor, first: Tensor, second: Tensor, groups: int = 1, compiled: bool = False) -> Tensor:
    """:func:`.squeeze_1x1` with a closed-form backward pass; once differentiable. Arguments and result as there.

    Args:
        compiled: Use :mod:`.compiled_squeeze`.
    """
    return _Squeeze1x1.apply(scale, origin, first, second, groups, compiled)
