"""Building optimizers: few parameter groups, and RepVGG's weight decay."""

import torch
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import Tensor, nn

from ..functional import repvgg_l2
from ..reparam.plain import is_repvgg_block


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class OREPAOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's default constructor with two additions; with ``compile=True`` in a config it gives groups that can be compiled.

    Parameters of equal settings share a group. The default makes a group of each parameter as soon as there is a ``paramwise_cfg``, and
    foreach and fused optimizers then take one parameter at a time. The group with the base settings comes first, so it is the one
    whose learning rate is logged.

    ``custom_l2=True`` decays RepVGG blocks as RepVGG's published training code does: the kernel a block adds up to is decayed, not the
    kernels and norms of its branches. RepVGG's authors found such kernels easier to quantize::

        optim_wrapper = dict(
            constructor='OREPAOptimWrapperConstructor',
            optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-4),
            paramwise_cfg=dict(custom_l2=True),
        )

    Args:
        optim_wrapper_cfg: As for the default constructor.
        paramwise_cfg: As for the default constructor, and ``custom_l2``.

    Raises:
        ValueError: When ``custom_l2`` is set but the model has no RepVGG block in training form, or the optimizer no weight decay.
    """

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = '', is_dcn_module: int | float | None = None) -> None:
        super().add_params(params, module, prefix, is_dcn_module)
        if prefix:
            return  # called for a child
        if self.paramwise_cfg.get('custom_l2'):
            spared = {id(p) for block in _blocks(module) for branch in _branches(block) for p in branch.parameters()}
            for group in params:
                if id(group['params'][0]) in spared:
                    group['weight_decay'] = 0.0
        base = dict(lr=self.base_lr, weight_decay=self.base_wd)  # what a group without a setting of its own has
        merged: list[tuple[dict, dict]] = []
        for group in params:
            settings = base | {key: value for key, value in group.items() if key != 'params'}
            like = next((other for known, other in merged if known == settings), None)
            if like is None:
                merged.append((settings, dict(group, params=list(group['params']))))
            else:
                like['params'] += group['params']
        merged.sort(key=lambda pair: any(pair[0][key] != value for key, value in base.items()))
        params[:] = [group for _, group in merged]

    def __call__(self, model: nn.Module) -> OptimWrapper:
        optim_wrapper = super().__call__(model)
        # The default makes them ConfigDicts, which torch.compile cannot trace.
        optim_wrapper.optimizer.param_groups = [dict(group) for group in optim_wrapper.optimizer.param_groups]
        if self.paramwise_cfg.get('custom_l2'):
            blocks = _blocks(getattr(model, 'module', model))
            if not blocks:
                raise ValueError('paramwise_cfg.custom_l2=True is for RepVGG blocks in training form, and the model has none: take it out.')
            if not self.base_wd:
                raise ValueError('paramwise_cfg.custom_l2=True needs a weight_decay of the optimizer, which says how strong it is.')
            # At the step rather than in the loss, as all weight decay: after accumulation, unscaling and clipping of gradients.
            optim_wrapper.optimizer.register_step_pre_hook(lambda optimizer, *_: _add_gradients(blocks, self.base_wd, optimizer))
        return optim_wrapper


def _blocks(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if is_repvgg_block(module)]


def _branches(block: nn.Module) -> tuple[nn.Module, nn.Module]:
    return block.branch_3x3, block.branch_1x1


def _factor(norm: nn.Module) -> Tensor:
    return (norm.weight * (norm.running_var + norm.eps).rsqrt()).detach()


def _add_gradients(blocks: list[nn.Module], weight_decay: float, optimizer: torch.optim.Optimizer) -> None:
    """Add the gradient of ``weight_decay / 2 * repvgg_l2`` of every block."""
    loss_scale = getattr(optimizer, 'grad_scale', None)  # a fused optimizer divides by it only inside its step
    for block in blocks:
        wide, narrow = _branches(block)
        parameters = [p for branch in (wide, narrow) for p in branch.conv.parameters() if p.grad is not None]
        if not parameters:
            continue
        with torch.enable_grad():
            penalty = repvgg_l2(wide.conv.weight, narrow.conv.weight, _factor(wide.norm), _factor(narrow.norm))
            gradients = torch.autograd.grad(0.5 * weight_decay * penalty, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                parameter.grad.add_(gradient if loss_scale is None else gradient * loss_scale)
