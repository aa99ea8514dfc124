"""Blocks whose parallel convolutions and norms add up to one convolution: the RepVGG block of mmpretrain."""

from collections import OrderedDict

from torch import nn
from torch.nn import functional as F

from ..functional import identity_kernel
from .fold import check_norm, check_own_norms, equivalent_conv, plain_conv
from .norm_pairs import is_batch_norm

BRANCHES = ('branch_3x3', 'branch_1x1', 'branch_norm')


def is_mergeable_block(module: nn.Module) -> bool:
    """Whether ``module`` is a RepVGG block in training form, on stock convolutions or others, with batch norms.

    Told by its structure, so that mmpretrain need not be installed or imported.
    """
    if not any(cls.__name__ == 'RepVGGBlock' for cls in type(module).__mro__):
        return False
    branches = [module._modules.get(name) for name in BRANCHES[:2]]
    if not all(isinstance(branch, nn.Sequential) and {'conv', 'norm'} == set(branch._modules) for branch in branches):
        return False
    norms = [branch.norm for branch in branches] + [norm for norm in [module._modules.get('branch_norm')] if norm is not None]
    return all(is_batch_norm(norm) for norm in norms)


def merge_block(block: nn.Module, path: str) -> nn.Module:
    """The deployed form of a RepVGG block ("RepVGG", CVPR 2021, section 3.3): one convolution instead of its branches.

    Returns:
        The convolution, the block's squeeze and excitation layer where it has one, and its activation, under the parameter names of the
        stock deployed form.

    Raises:
        FuseError: When a norm is in training mode or has no running statistics.
    """
    like = block.branch_3x3.conv
    branches = [
        (block.branch_3x3.conv, block.branch_3x3.norm, f'{path}.branch_3x3.norm'),
        (block.branch_1x1.conv, block.branch_1x1.norm, f'{path}.branch_1x1.norm'),
    ]
    if block.branch_norm is not None:
        branches.append((_identity(like), block.branch_norm, f'{path}.branch_norm'))
    weight, bias = 0, 0
    for conv, norm, norm_path in branches:
        check_own_norms(conv, path)
        check_norm(norm, norm_path, conv.out_channels)
        kernel, shift = equivalent_conv(conv, norm)
        margin = (like.kernel_size[0] - kernel.shape[-1]) // 2
        weight, bias = weight + F.pad(kernel, [margin] * 4), bias + shift
    norms = [norm for _, norm, _ in branches]
    rest = [(name, child) for name, child in block._modules.items() if name not in BRANCHES and child is not None]
    # Not a block of the stock class: deployed, that leaves squeeze and excitation out.
    sequence = nn.Sequential(OrderedDict([('branch_reparam', plain_conv(like, weight, bias, block, *norms)), *rest]))
    sequence.training = block.training
    return sequence


def _identity(like: nn.Module) -> nn.Conv2d:
    """The convolution that gives its input back."""
    conv = nn.Conv2d(like.in_channels, like.out_channels, like.kernel_size, groups=like.groups, bias=False, device='meta')
    parameter = next(like.parameters())
    kernel = identity_kernel(like.in_channels, like.kernel_size[0], like.groups, device=parameter.device, dtype=parameter.dtype)
    conv.weight = nn.Parameter(kernel, requires_grad=False)
    return conv
