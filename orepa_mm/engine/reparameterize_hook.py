"""Validating and testing in deployed form."""

from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from ..errors import FuseError, ReparameterizeError, some
from ..layers import ReparameterizableConv2d
from ..reparam import Swap, plan_swaps
from ..reparam.comparison import Difference, LayerComparison
from ..reparam.convert import check_whole
from .distributed import unwrapped

# Of a layer's output scale, by the parameters' dtype: some ten times what rounding comes to, which is 24 roundings of a sum in float32 and
# 1.5 of the plain weights in half precision. On a GPU float32 convolutions run in TF32, with 11 bits.
TOLERANCES = {torch.float64: 1e-10, torch.float32: 3e-5, torch.float16: 8e-3, torch.bfloat16: 6e-2}
TF32_TOLERANCE = 1e-3


@HOOKS.register_module()
class ReparameterizeHook(Hook):
    """Validate and test the network that the model becomes in deployed form.

    The first batch runs in training form. On it each layer is compared with its plain form, on the layer's own inputs, so any model will
    do; the largest difference is logged, and above the tolerance the run ends with the name of the worst layer. In all other batches the
    plain forms compute in the layers' stead, at the plain network's cost. Parameters and modules of the model stay those of the training
    form: training goes on as if there had been no validation, also after one that was interrupted, and checkpoints hold the training form.
    Works with ``EMAHook`` (the averaged weights are re-parameterized), with test-time augmentation and with distributed wrappers.

    Fires around the first iteration of validating and testing, and in ``after_val_epoch`` and ``after_test_epoch`` before other hooks::

        default_hooks = dict(reparameterize=dict(type='ReparameterizeHook'))

    Args:
        val: Re-parameterize for validation too, not only for testing.
        tolerance: Largest difference of a layer's outputs allowed, relative to their scale. Default: by the parameters' dtype, 3e-5 for
            float32 (1e-3 on a GPU), 8e-3 for float16, 6e-2 for bfloat16.

    Raises:
        ReparameterizeError: When a layer's outputs differ by more than ``tolerance`` or are not finite, and for a sharded model, before
            its training starts.
    """

    # First among the hooks, so that plain forms are gone before EMAHook copies or swaps weights.
    priority = 'VERY_HIGH'

    def __init__(self, val: bool = True, tolerance: float | None = None) -> None:
        self.val, self.tolerance = val, tolerance
        self.difference: float | None = None
        self._planned: list[Swap] = []
        self._applied: list[_PlainForward] = []
        self._comparison: LayerComparison | None = None

    def before_run(self, runner: Runner) -> None:
        self._undo()  # of a validation that was interrupted
        model = unwrapped(runner.model)
        try:
            branches = any(isinstance(m, ReparameterizableConv2d) for m in model.modules()) or plan_swaps(model)
        except FuseError:  # of blocks whose norms are in training mode
            return
        if not branches:
            runner.logger.info('ReparameterizeHook: the model has no layers with branches, so it is in deployed form already.')

    def before_train(self, runner: Runner) -> None:
        self._undo()
        if self.val and runner.val_loop is not None:
            _check_whole(runner.model)  # now, and not after a first epoch

    def before_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        if self.val:
            self.before_test_iter(runner, batch_idx)

    def before_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        # Not earlier: EMAHook puts the averaged weights into the model before an epoch.
        if batch_idx == 0:
            self._undo()
            _check_whole(runner.model)
            self._planned = list({id(swap.old): swap for swap in plan_swaps(unwrapped(runner.model))}.values())  # a shared layer once
            self._comparison = LayerComparison(self._planned) if self._planned else None

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if self._comparison is not None:
            swaps, differences = self._planned, self._comparison.differences
            self._undo()
            compared = self._judge(differences)
            unreached = [swap.path for swap in swaps if swap.path not in differences]
            if unreached:
                runner.logger.warning(
                    f'The first batch did not reach {len(unreached)} of {len(swaps)} layers to compare: {some(unreached)}.'
                )
            self._applied = [_PlainForward(swap.old, swap.new) for swap in swaps]
            before = _count(runner.model)
            after = before + sum(_count(swap.new) - _count(swap.old) for swap in swaps)
            runner.logger.info(
                f'Re-parameterized {len(swaps)} layers: {before / 1e6:.2f} M parameters before, {after / 1e6:.2f} M after; {compared}.'
            )

    after_test_iter = after_val_iter

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self._undo()

    after_test_epoch = after_val_epoch

    def _judge(self, differences: dict[str, Difference]) -> str:
        """What to say of the layer that is furthest from its plain form; an error where that is too far."""
        self.difference = 0.0
        if not differences:
            return 'none was compared'
        worst = max(differences, key=lambda path: differences[path].largest / self._tolerance_for(differences[path].parameter))
        self.difference, tolerance = differences[worst].largest, self._tolerance_for(differences[worst].parameter)
        if self.difference == float('inf'):
            raise ReparameterizeError(
                f'the layer "{worst}" gives values that are not finite on the first batch, in training or in plain form: its weights, '
                'norm statistics or inputs are not finite, or too large for half precision.'
            )
        if self.difference > tolerance:
            raise ReparameterizeError(
                f'the plain form of the layer "{worst}" differs from its training form by {self.difference:.2e} of the output scale on '
                f'the first batch, more than the tolerance of {tolerance:.0e}. Usual causes: weights or norm statistics that were not '
                'loaded, norms with a variance near zero, half precision. Set tolerance=... of the hook if the difference is acceptable.'
            )
        return (
            f'largest difference of a layer\'s output on the first batch {self.difference:.2e} of its scale ("{worst}"), '
            f'tolerance {tolerance:.0e}'
        )

    def _tolerance_for(self, parameter: torch.Tensor) -> float:
        if self.tolerance is not None:
            return self.tolerance
        if parameter.dtype == torch.float32 and parameter.is_cuda:
            return TF32_TOLERANCE
        return TOLERANCES.get(parameter.dtype, max(TOLERANCES.values()))

    def _undo(self) -> None:
        if self._comparison is not None:
            self._comparison.stop()
        for forward in self._applied:
            forward.undo()
        self._planned, self._applied, self._comparison = [], [], None


class _PlainForward:
    """Computes a layer's plain form in its place, except in training, as after a validation that was interrupted."""

    def __init__(self, layer: nn.Module, plain: nn.Module) -> None:
        self.layer, self.plain, self.own = layer, plain, vars(layer).get('forward')
        layer.forward = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.layer.training or torch.is_grad_enabled():
            return type(self.layer).forward(self.layer, *args, **kwargs)
        return self.plain.forward(*args, **kwargs)

    def undo(self) -> None:
        del self.layer.forward
        if self.own is not None:
            self.layer.forward = self.own


def _check_whole(model: nn.Module) -> None:
    try:
        check_whole(model)
    except FuseError as error:
        raise ReparameterizeError(
            f'{error} val=False of the hook lets a training validate in training form; test its checkpoint without sharding.'
        ) from None


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
