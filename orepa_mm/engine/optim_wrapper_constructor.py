"""Building optimizers: few parameter groups, and weight decay of the kernels that are deployed."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from mmengine.dist import all_reduce
from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from ..functional import repvgg_l2
from ..layers import ReparameterizableConv2d, SqueezedConv2d
from ..reparam.plain import is_repvgg_block
from ..torch_versions import keep_step_hooks

NORMS = (_BatchNorm, _InstanceNorm, nn.GroupNorm, nn.LayerNorm)  # as the default constructor counts them


class Decayed(NamedTuple):
    """A layer or block whose deployed kernel is decayed."""

    spared: list[nn.Parameter]  # not decayed by the optimizer itself
    kernels: list[nn.Parameter]  # those of them that make up the kernel
    penalty: Callable[[], Tensor]  # the squared norm of the kernel, a scalar


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class OREPAOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's default constructor with three additions; with ``compile=True`` in a config it gives groups that can be compiled.

    Parameters of equal settings share a group. The default makes a group of each parameter as soon as there is a ``paramwise_cfg``, and
    foreach and fused optimizers then take one parameter at a time. The group with the base settings comes first, so it is the one
    whose learning rate is logged.

    What a key of ``custom_keys`` leaves open follows the other rules, which the default constructor drops: with ``lr_mult`` only norms keep
    their ``norm_decay_mult`` and biases their ``bias_decay_mult``. ``dwconv_decay_mult`` holds for depthwise layers with branches too.

    ``custom_l2=True`` decays what is deployed instead of what is trained: of an OREPA convolution the squeezed kernel instead of its
    branches, of a RepVGG block, as its published training code does, the kernel it adds up to instead of the kernels and norms of its
    branches, through the squeezing where a branch is an OREPA convolution. Strength is the ``weight_decay`` that the settings give to the
    first parameter of the layer or block. It is an L2 penalty, also where the optimizer's own decay is not (AdamW). One more squeezing a
    step is what it costs. docs/int8.md says what it does to quantized networks::

        optim_wrapper = dict(
            constructor='OREPAOptimWrapperConstructor',
            optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-4),
            paramwise_cfg=dict(custom_l2=True),
        )

    Args:
        optim_wrapper_cfg: As for the default constructor.
        paramwise_cfg: As for the default constructor, and ``custom_l2``.

    Raises:
        ValueError: When ``custom_l2`` is set but the model has no OREPA convolution and no RepVGG block in training form, the optimizer no
            weight decay, or a RepVGG block norms without running statistics.
    """

    def add_params(
        self, params: list[dict[str, Any]], module: nn.Module, prefix: str = '', is_dcn_module: int | float | None = None
    ) -> None:
        super().add_params(params, module, prefix, is_dcn_module)
        if prefix:
            return  # called for a child
        if self.base_wd is not None:
            self._follow_rules(params, module)
        if self.paramwise_cfg.get('custom_l2'):
            self.decays: dict[int, float | None] = {id(group['params'][0]): group.get('weight_decay', self.base_wd) for group in params}
            spared = {id(p) for decayed in _decayed(module) for p in decayed.spared}
            for group in params:
                if id(group['params'][0]) in spared:
                    group['weight_decay'] = 0.0
        base = dict(lr=self.base_lr, weight_decay=self.base_wd)  # what a group without a setting of its own has
        merged: list[tuple[dict[str, Any], dict[str, Any]]] = []
        for group in params:
            settings = base | {key: value for key, value in group.items() if key != 'params'}
            like = next((other for known, other in merged if known == settings), None)
            if like is None:
                merged.append((settings, dict(group, params=list(group['params']))))
            else:
                like['params'] += group['params']
        merged.sort(key=lambda pair: any(pair[0][key] != value for key, value in base.items()))
        params[:] = [group for _, group in merged]

    def _follow_rules(self, params: list[dict[str, Any]], model: nn.Module) -> None:
        custom = self.paramwise_cfg.get('custom_keys', {})
        keys = sorted(sorted(custom), key=len, reverse=True)  # the longest counts
        groups = {id(group['params'][0]): group for group in params}
        convs = [module for module in model.modules() if isinstance(module, nn.Conv2d | ReparameterizableConv2d)]
        depthwise = {id(p) for conv in convs if conv.groups == conv.in_channels for p in conv.parameters()}
        for path, module in model.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                key, one = next((key for key in keys if key in f'{path}.{name}'), None), id(parameter)
                if one not in groups or (key is None and one not in depthwise) or 'decay_mult' in custom.get(key, {}):
                    continue
                kinds = ['bias'] * (name == 'bias') + ['dwconv' if one in depthwise else 'flat' if parameter.ndim == 1 else '']
                mults = [self.paramwise_cfg.get(f'{kind}_decay_mult') for kind in (['norm'] if isinstance(module, NORMS) else kinds)]
                for mult in [mult for mult in mults if mult is not None][:1]:
                    groups[one]['weight_decay'] = self.base_wd * mult
                    print_log(f'paramwise_options -- {path}.{name}:weight_decay={self.base_wd * mult}', logger='current')

    def __call__(self, model: nn.Module) -> OptimWrapper:
        try:
            optim_wrapper = super().__call__(model)
        except (TypeError, RuntimeError):
            if torch.__version__ >= '2.4' or self.optimizer_cfg.pop('fused', None) is None:
                raise
            print_log(f'The optimizer is not fused: torch {torch.__version__} cannot do that here.', logger='current')
            optim_wrapper = super().__call__(model)
        # The default makes them ConfigDicts, which torch.compile cannot trace.
        optim_wrapper.optimizer.param_groups = [dict(group) for group in optim_wrapper.optimizer.param_groups]
        if self.paramwise_cfg.get('custom_l2'):
            decayed = _decayed(getattr(model, 'module', model))
            if not decayed:
                raise ValueError(
                    'paramwise_cfg.custom_l2=True is for OREPA convolutions and RepVGG blocks in training form, and the model has none: '
                    'take it out.'
                )
            if not self.base_wd:
                raise ValueError('paramwise_cfg.custom_l2=True needs a weight_decay of the optimizer, which says how strong it is.')
            strengths = [next((self.decays[id(p)] for p in each.kernels if id(p) in self.decays), 0.0) for each in decayed]
            # At the step rather than in the loss, as all weight decay: after accumulation, unscaling and clipping of gradients.
            keep_step_hooks()
            optim_wrapper.optimizer.register_step_pre_hook(lambda optimizer, *_: _add_gradients(decayed, strengths, optimizer))
            optim_wrapper.optimizer.decays_kernels = True  # asked by who takes them out of the model
        return optim_wrapper


def _decayed(model: nn.Module) -> list[Decayed]:
    blocks: list[Any] = [module for module in model.modules() if is_repvgg_block(module)]
    branches = [branch for block in blocks for branch in (block.branch_3x3, block.branch_1x1)]
    inside = {module for branch in branches for module in branch.modules()}
    layers = [module for module in model.modules() if isinstance(module, SqueezedConv2d) and module not in inside]
    return [*map(_decayed_layer, layers), *map(_decayed_block, blocks)]


def _decayed_layer(layer: SqueezedConv2d) -> Decayed:
    kernels = list(layer.kernel.parameters())
    return Decayed(kernels, kernels, lambda: layer.weight.square().sum())


def _decayed_block(block: Any) -> Decayed:
    wide, narrow = block.branch_3x3, block.branch_1x1
    if wide.norm.running_var is None or narrow.norm.running_var is None:
        raise ValueError(
            'paramwise_cfg.custom_l2=True needs the running statistics of the norms in RepVGG blocks, and they keep none '
            '(track_running_stats=False): give them statistics, or take custom_l2 out.'
        )
    return Decayed(
        [*wide.parameters(), *narrow.parameters()],
        [*wide.conv.parameters(), *narrow.conv.parameters()],
        lambda: repvgg_l2(wide.conv.weight, narrow.conv.weight, _factor(wide.norm), _factor(narrow.norm)),
    )


def _factor(norm: Any) -> Tensor:
    variance = norm.running_var.detach().clone()
    all_reduce(variance, op='mean')  # each process of a distributed run has statistics of its own, and all must take the same step
    return norm.weight.detach() * (variance + norm.eps).rsqrt()


def _add_gradients(decayed: list[Decayed], strengths: list[float | None], optimizer: torch.optim.Optimizer) -> None:
    """Add the gradient of half the penalty times its strength to the parameters that have a gradient."""
    loss_scale = getattr(optimizer, 'grad_scale', None)  # a fused optimizer divides by it only inside its step
    for each, strength in zip(decayed, strengths, strict=True):
        parameters = [p for p in each.kernels if p.grad is not None]
        if not parameters or not strength:
            continue
        with torch.enable_grad():
            gradients = torch.autograd.grad(0.5 * strength * each.penalty(), parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None and parameter.grad is not None:
                parameter.grad.add_(gradient if loss_scale is None else gradient * loss_scale)
