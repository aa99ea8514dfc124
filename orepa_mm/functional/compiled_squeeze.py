"""The passes between the matrix products of :mod:`.fused_squeeze`, each compiled into one loop over memory.

They take whole kernels in rows, [g, O/g, k*k, I/g], and are compiled on first use, for all channel counts at once.
"""

import functools

import torch
from torch import Tensor

from .separable import DepthwiseGradient


@functools.cache
def _compiled(function):
    return torch.compile(function, dynamic=True)


def _combine(sequence, origin, avg, freq, prior, dw, pw, point, scale):
    *s, s_separable = scale.unbind(0)
    taps = origin.shape[2]
    separable = pw[:, :, 0, None] * dw[:, None, 0]
    for e in range(1, dw.shape[1]):
        separable = separable + pw[:, :, e, None] * dw[:, None, e]
    w = sequence * s[3][..., None] + origin * s[0][..., None] + separable * s_separable[..., None]
    w = w + (freq * s[2])[:, :, None] * prior[..., None] + (avg * (s[1] / taps))[:, :, None]
    if point is not None:
        centre = torch.arange(taps, device=w.device) == taps // 2
        w = w + torch.where(centre[:, None], (point * s[4])[:, :, None], 0.0)
    return w


def _combine_1x1(product, plain, s0, s1):
    return product * s1 + plain * s0


def _scale_and_dot(grad, weight, scale):
    """Gradient of a scaled weight and of its scale, which has a value per output channel."""
    return grad * scale, (grad * weight).flatten(2).sum(2)


def _gradients(g, sequence, scale, origin, avg, freq, prior, seq_kxk, dw, pw, point):
    """All that the gradients need between the products, in one call: calling has its price for small kernels."""
    *s, s_separable = scale.unbind(0)
    taps = g.shape[2]
    d = {}
    d['origin'], dot_origin = _scale_and_dot(g, origin, s[0][..., None])
    d['seq_kxk'], dot_sequence = _scale_and_dot(sequence, seq_kxk, s[3][..., None])
    pooled, filtered = g[:, :, 0], g[:, :, 0] * prior[:, :, 0, None]
    d_pw = g[:, :, None, 0] * dw[:, None, :, 0]
    for p in range(1, taps):
        pooled, filtered = pooled + g[:, :, p], filtered + g[:, :, p] * prior[:, :, p, None]
        d_pw = d_pw + g[:, :, None, p] * dw[:, None, :, p]
    d['avg'], dot_avg = _scale_and_dot(pooled, avg, s[1] / taps)
    d['freq'], dot_freq = _scale_and_dot(filtered, freq, s[2])
    d['pw'], dot_separable = _scale_and_dot(d_pw, pw, s_separable[..., None])
    dots = [dot_origin, dot_avg / taps, dot_freq, dot_sequence]
    if point is not None:
        d['point'], dot_point = _scale_and_dot(g[:, :, taps // 2], point, s[4])
        dots.append(dot_point)
    d['scale'] = torch.stack([*dots, dot_separable])
    return d, seq_kxk * s[3][..., None], pw * s_separable[..., None]


def squeeze_rows(scale, origin, avg, freq, prior, seq_1x1, seq_kxk, dw, pw, point) -> Tensor:
    """The kernel, of parameters in rows."""
    sequence = torch.bmm(seq_kxk.flatten(1, 2), seq_1x1).view_as(origin)
    return _compiled(_combine)(sequence, origin, avg, freq, prior, dw, pw, point, scale)


def gradient_rows(grad, scale, origin, avg, freq, prior, seq_1x1, seq_kxk, dw, pw, point) -> dict[str, Tensor | None]:
    """Gradients of the parameters, in rows."""
    g = grad.contiguous()
    sequence = torch.bmm(g.flatten(1, 2), seq_1x1.transpose(1, 2)).view_as(seq_kxk)
    d, scaled, scaled_pw = _compiled(_gradients)(g, sequence, scale, origin, avg, freq, prior, seq_kxk, dw, pw, point)
    d['seq_1x1'] = torch.bmm(scaled.flatten(1, 2).transpose(1, 2), g.flatten(1, 2))
    d_dw = DepthwiseGradient(dw, g.shape[1])
    d_dw.add(g, scaled_pw)
    d['dw'] = d_dw.total()
    return d


def squeeze_1x1_rows(s0, s1, plain, inner, outer) -> Tensor:
    return _compiled(_combine_1x1)(torch.bmm(outer, inner), plain, s0, s1)


def gradient_1x1_rows(grad, s0, s1, plain, inner, outer) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the scales [2, g, O/g], ``plain``, ``inner`` and ``outer``."""
    d_inner = torch.bmm((outer * s1).transpose(1, 2), grad)
    d_outer, dot_stacked = _compiled(_scale_and_dot)(torch.bmm(grad, inner.transpose(1, 2)), outer, s1)
    d_plain, dot_plain = _compiled(_scale_and_dot)(grad, plain, s0)
    return torch.stack([dot_plain, dot_stacked]), d_plain, d_inner, d_outer
