"""What every convolution layer with training-time branches has in common."""

import torch
from torch import Tensor, nn

from ..errors import LayerError, PlainKernelError

# What a constructor shares with nn.Conv2d.
SHAPE_ARGUMENTS = (
    'in_channels', 'out_channels', 'kernel_size', 'stride', 'padding', 'dilation', 'groups', 'bias', 'padding_mode', 'device', 'dtype',
)  # fmt: skip


def memory_format_of(module: nn.Module) -> torch.memory_format:
    """``channels_last`` where a parameter of ``module`` is in that format and in no other."""
    last = torch.channels_last
    kernels = [p for p in module.parameters() if p.dim() == 4 and p.shape[-1] > 1]
    found = any(p.is_contiguous(memory_format=last) and not p.is_contiguous() for p in kernels)
    return last if found else torch.contiguous_format


class ReparameterizableConv2d(nn.Module):
    """Base of the layers that :func:`orepa_mm.reparameterize` turns into ``nn.Conv2d``.

    It is no ``nn.Conv2d`` on purpose: weight initialisers and tools that look for ``nn.Conv2d`` would write into a weight that is
    computed from the branches. The arguments and attributes are those of ``nn.Conv2d``.

    A subclass defines :meth:`equivalent_conv`, the kernel and bias of the plain convolution it equals in eval mode.

    Args:
        plain_sizes: Kernel sizes to build as stock ``nn.Conv2d``, which then is what the constructor returns.

    Raises:
        LayerError: For an even or rectangular kernel, and where ``nn.Conv2d`` raises ``ValueError``, e.g. for channels that
            ``groups`` does not divide.
    """

    def __new__(cls, *args, plain_sizes: tuple[int, ...] = (), **kwargs):
        kernel_size = args[2] if len(args) > 2 else kwargs.get('kernel_size')  # None when copied or unpickled
        size = kernel_size if isinstance(kernel_size, int) else kernel_size[0] if kernel_size else None
        if size in plain_sizes:
            shape = {key: value for key, value in kwargs.items() if key in SHAPE_ARGUMENTS}
            return nn.Conv2d(*args, **shape)
        return super().__new__(cls)

    transposed = False
    output_padding = (0, 0)

    # The stock method reads the attributes set below only, so padding modes and string paddings work as in nn.Conv2d.
    _conv_forward = nn.Conv2d._conv_forward

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = 'zeros',
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        layer = f'{type(self).__name__}({in_channels}, {out_channels}, kernel_size={kernel_size}, groups={groups})'
        if in_channels <= 0 or out_channels <= 0:
            raise LayerError(f'{layer}: in_channels and out_channels must be positive')
        try:  # checks and normalises the arguments; a tensor on the meta device costs nothing
            shape = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, False, padding_mode, device='meta')
        except ValueError as error:
            raise LayerError(f'{layer}: {error}') from None
        height, width = shape.kernel_size
        if height != width or height % 2 == 0:
            raise LayerError(f"{layer}: needs a square kernel of odd size; use conv_cfg=dict(type='Conv2d') for this layer")
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride, self.padding, self.dilation = (
            shape.kernel_size,
            shape.stride,
            shape.padding,
            shape.dilation,
        )
        self.padding_mode = padding_mode
        self._reversed_padding_repeated_twice = shape._reversed_padding_repeated_twice
        if bias:
            self.bias = nn.Parameter(torch.zeros(out_channels, device=device, dtype=dtype))
        else:
            self.register_parameter('bias', None)

    def equivalent_conv(self) -> tuple[Tensor, Tensor | None]:
        """Kernel [O, I/g, k, k] and bias [O] (or None) of the plain convolution this layer equals."""
        raise NotImplementedError

    @property
    def memory_format(self) -> torch.memory_format:
        """Memory format of the kernels, that of the plain convolution too."""
        return memory_format_of(self)

    def init_weights(self) -> None:
        """Draw new weights; mmcv's ``ConvModule`` leaves layers alone that have this method."""
        self.reset_parameters()

    def reset_parameters(self) -> None:
        raise NotImplementedError

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        # Loaders that are not strict would drop these keys and train or test a network with random kernels.
        if prefix + 'weight' in state_dict and not any(
            prefix + name in state_dict for name, _ in self.named_parameters() if name != 'bias'
        ):
            raise PlainKernelError(
                f'the checkpoint holds a plain kernel "{prefix}weight" where the model has a {type(self).__name__} with its training-time '
                'branches: it is a re-parameterized checkpoint, or one of a stock model. Load the training-form checkpoint, or build '
                'the plain model (conv_cfg=None, the stock backbone) for this one.'
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        text = f'{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}'
        for name, default in dict(padding=(0, 0), dilation=(1, 1), groups=1, padding_mode='zeros').items():
            if getattr(self, name) != default:
                text += f', {name}={getattr(self, name)!r}'
        return text + (', bias=False' if self.bias is None else '')
