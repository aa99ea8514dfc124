"""The plain form of one layer or block with training-time branches."""

import copy
import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import FuseError
from ..functional import add_identity, in_float32
from ..layers import ReparameterizableConv2d
from ..layers.base import check_norms, plain_conv, share_hooks
from ..layers.normed_conv import fold

REPVGG_BRANCHES = ('branch_3x3', 'branch_1x1', 'branch_norm')


@torch.inference_mode(False)
@torch.no_grad()
def plain_form(module: nn.Module, path: str) -> nn.Module | None:
    """What takes the place of ``module``, which is called ``path`` in messages; None where it has no branches, or none that can be merged.

    - An OREPA convolution or a Diverse Branch Block becomes the ``nn.Conv2d`` it equals.
    - A RepVGG block of mmpretrain becomes its convolution, its squeeze and excitation layer where it has one, and its activation, under
      the stock deployed form's parameter names ("RepVGG", CVPR 2021, section 3.3).
    - Whatever else offers ``switch_to_deploy()`` becomes a copy on which that was called.

    Raises:
        FuseError: When a norm in the branches is in training mode or has no running statistics.
    """
    plain: nn.Module | None
    if isinstance(module, ReparameterizableConv2d):
        check_norms(module, path)
        return module.fuse()
    elif is_repvgg_block(module):
        check_norms(module, path)
        plain = _merged_repvgg_block(module, in_float32(module))
        plain.to(next(module.parameters()).dtype)
    elif _deploys_itself(module):
        check_norms(module, path)
        plain = _deployed_copy(module, path)
        if plain is None:
            return None
    else:
        return None
    share_hooks(module, plain)
    return plain


def is_repvgg_block(module: Any) -> bool:
    """Whether ``module`` is a RepVGG block in training form whose parts all are what mmpretrain's own class takes them for."""
    stock = sys.modules.get('mmpretrain.models.backbones.repvgg')  # where it is not imported there is no such block
    if stock is None or type(module).forward is not getattr(getattr(stock, 'RepVGGBlock', None), 'forward', None) or module.deploy:
        return False
    norms = (module.branch_3x3.norm, module.branch_1x1.norm, module.branch_norm)
    return all(norm is None or _is_stock_norm(norm) for norm in norms)


def _is_stock_norm(norm: nn.Module) -> bool:
    """A subclass that does more than normalise cannot be folded."""
    return type(norm).forward in (_BatchNorm.forward, nn.SyncBatchNorm.forward)


def _merged_repvgg_block(block: Any, exact: Any) -> nn.Module:
    """Of ``block``, from the values of ``exact``."""
    conv, point = exact.branch_3x3.conv, exact.branch_1x1.conv
    weight, bias = fold(conv.weight, exact.branch_3x3.norm, conv.bias)
    branches = [fold(point.weight, exact.branch_1x1.norm, point.bias)]
    if exact.branch_norm is not None:
        branches.append(fold(add_identity(torch.zeros_like(point.weight)), exact.branch_norm))
    for kernel, shift in branches:
        weight, bias = weight + F.pad(kernel, [conv.kernel_size[0] // 2] * 4), bias + shift  # the 1x1 kernel's place is the centre
    rest = [(name, child) for name, child in block.named_children() if name not in REPVGG_BRANCHES]
    # Not a block of the stock class: deployed, that leaves squeeze and excitation out.
    plain = nn.Sequential(OrderedDict([('branch_reparam', plain_conv(conv, weight, bias, block)), *rest]))
    plain.training = block.training
    return plain


def blocks_with_branches(model: nn.Module) -> dict[str, nn.Module]:
    """Blocks inside a model with convolutions that a method of theirs merges, by the names that timm calls; the innermost, by path."""
    found: dict[str, nn.Module] = {}
    for path, module in reversed([named for named in model.named_modules() if named[0]]):
        methods = [each for name in ('fuse', 'reparameterize') if callable(each := getattr(module, name, None))]
        merges = any(all(p.default is not p.empty for p in signature(each).parameters.values()) for each in methods)
        convs = [part for part in module.modules() if isinstance(part, nn.Conv2d | ReparameterizableConv2d)] if merges else []
        if len(convs) > 1 and not any(inner.startswith(f'{path}.') for inner in found):
            found[path] = module
    return found


def _deploys_itself(module: nn.Module) -> bool:
    """Whether ``module`` has a ``switch_to_deploy()`` of its own that knows its ``forward``, and no part that has one."""
    if not callable(getattr(module, 'switch_to_deploy', None)) or any(getattr(part, 'deploy', False) for part in module.modules()):
        return False
    classes = type(module).__mro__
    defines = {name: next(cls for cls in classes if name in vars(cls)) for name in ('forward', 'switch_to_deploy')}
    if classes.index(defines['forward']) < classes.index(defines['switch_to_deploy']):
        return False  # a subclass computes something that the method does not know of
    if not all(_is_stock_norm(norm) for norm in module.modules() if isinstance(norm, _BatchNorm)):
        return False
    return not any(hasattr(part, 'switch_to_deploy') for part in module.modules() if part is not module)


def _deployed_copy(module: Any, path: str) -> nn.Module | None:
    """A deployed copy; None where deploying changes nothing."""
    plain = copy.deepcopy(module)
    for part in list(plain.modules()):
        if getattr(part, 'conv_cfg', None) is not None:
            part.conv_cfg = None  # what a stock block builds when it deploys itself must be plain
        for name, child in list(part.named_children()):
            if isinstance(child, ReparameterizableConv2d):
                setattr(part, name, plain_conv(child, *child.equivalent_conv(), child))
    with _made_like(next(module.parameters())):
        try:
            plain.switch_to_deploy()
        except AssertionError as error:  # how the stock blocks refuse norms they do not know
            raise FuseError(f'the {type(module).__name__} "{path}" does not deploy itself: {error}') from None
    if plain.state_dict().keys() == module.state_dict().keys():
        return None
    made_from = dict(module.named_parameters())
    trainable = any(p.requires_grad for p in made_from.values())
    for name, parameter in plain.named_parameters():  # some blocks detach what they make, which would freeze it
        parameter.requires_grad_(made_from[name].requires_grad if name in made_from else trainable)
    plain.train(module.training)  # returns nothing in some backbones
    return plain


@contextmanager
def _made_like(parameter: Tensor) -> Iterator[None]:
    """New parameters are of the device and dtype of ``parameter``; the stock methods say nothing of either."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(parameter.dtype)
    try:
        with torch.device(parameter.device):
            yield
    finally:
        torch.set_default_dtype(default)
