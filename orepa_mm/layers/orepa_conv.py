"""The OREPA convolution layer."""

from collections.abc import Iterable
from typing import Any

from .kernels import OREPAKernel
from .methods import register_method
from .squeezed_conv import SqueezedConv2d
from .stem import DeepLinearKernel


@register_method('OREPA')
class OREPAConv2d(SqueezedConv2d):
    """A convolution whose kernel is squeezed from parallel linear branches before every forward pass.

    The form follows from the kernel size: 1 x 1 has two branches, 3 x 3 and 5 x 5 have six at most, and from 7 x 7 on the kernel is a deep
    linear stem of stacked 3x3 OREPA kernels. Source: "Online Convolutional Re-parameterization", CVPR 2022, section 3.

    The squeezing runs in the parameters' dtype, under autocast too: it is cheap, and half precision there would round every branch.
    It costs the same in evaluation as in training: evaluate inside ``with orepa_mm.reparameterized(model):``.

    Usable wherever MM models take a ``conv_cfg``::

        conv_cfg=dict(type='OREPAConv2d')

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype: As in
            ``nn.Conv2d``; the kernel must be square and odd.
        plain_stages: Build the stages of a deep linear stem as plain 3x3 kernels instead of OREPA ones.
        branches: Which branches there are: ``'full'`` (all six), ``'light'`` (those that cost next to nothing: origin, avg, freq, point) or
            any of their names: ``'origin'`` (plain), ``'avg'`` (1x1, then average pooling), ``'freq'`` (1x1, then the frequency prior),
            ``'sequence'`` (1x1, then k x k), ``'point'`` (1x1), ``'separable'`` (depthwise, then pointwise). 1x1 kernels have origin and
            sequence, large ones hand it to their stages.
        init: How the weights start: ``'published'`` draws every branch, as the published code does. ``'balanced'`` draws the kernel and
            bias of ``nn.Conv2d`` and expands them, as :func:`orepa_mm.expand` does. What initialises plain convolutions, such as
            ``layer='Conv2d'`` of an ``init_cfg`` or ``model.apply``, then draws this layer too. None (default) is ``'published'``, and
            a warning says where such an initialiser passes over the layer.
        start: How branches start from a plain kernel, as for :func:`orepa_mm.expand`: one that is loaded, or that ``'balanced'`` draws.

    Raises:
        LayerError: For an even or rectangular kernel, for branches that are none or unknown, for an unknown ``init`` or ``start``, where
            ``nn.Conv2d`` raises ``ValueError``, and with ``init='balanced'`` as :meth:`from_conv`.

    Example:
        >>> conv = OREPAConv2d(64, 128, kernel_size=3, stride=2, padding=1, bias=False)
        >>> conv.weight.shape
        torch.Size([128, 64, 3, 3])
    """

    plain_sizes = ()
    key_mark = '.kernel.scale'
    kernel_keys = tuple((name, name) for name in ('kernel.origin', 'kernel.stages.0.origin', 'kernel.stages.0.weight'))

    def build(self, shape: dict[str, Any], *, plain_stages: bool = False, branches: str | Iterable[str] = 'full') -> None:
        if self.kernel_size[0] < 7:
            self.kernel = OREPAKernel(branches=branches, **shape)
        else:
            self.kernel = DeepLinearKernel(plain_stages=plain_stages, branches=branches, **shape)
