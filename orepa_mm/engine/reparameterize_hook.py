"""Testing in deployed form."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop
from mmengine.runner.checkpoint import get_state_dict, weights_to_cpu
from torch import nn

from ..errors import ReparameterizeError
from ..reparam import Swap, is_reparameterizable, plan_swaps
from ..reparam.outputs import dense_outputs, largest_difference

# How far rounding alone can take the two forms apart, relative to the outputs' scale. On GPUs float32 convolutions run in TF32.
TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-3, torch.bfloat16: 1e-1, torch.float16: 5e-2}


@HOOKS.register_module()
class ReparameterizeHook(Hook):
    """Re-parameterize the model before testing and give it its training form back afterwards.

    On the first batch it runs the model in both forms and logs the largest difference of their outputs. The parameters, buffers and
    modules of the training form are set aside, not changed: training goes on after a validation as if there had been none, and a
    checkpoint saved meanwhile holds the training form. Works with ``EMAHook`` (the averaged weights are re-parameterized), with test-time
    augmentation and with distributed wrappers.

    Fires in ``before_test_iter`` of the first batch and before ``after_test_epoch`` of other hooks, also when testing raised::

        custom_hooks = [dict(type='ReparameterizeHook', val=True)]

    Args:
        val: Re-parameterize before validation too.
        fuse_norm: Fold the batch norms into the convolutions.
        tolerance: Largest difference allowed, relative to the outputs' scale. Default: 1e-3 for float32 models, 5e-2 for float16,
            1e-1 for bfloat16.

    Raises:
        ReparameterizeError: When the outputs differ by more than ``tolerance``, or when the model has nothing to re-parameterize.
    """

    # First among the hooks, so that the training form is back before EMAHook swaps weights and CheckpointHook saves.
    priority = 'VERY_HIGH'

    def __init__(self, val: bool = False, fuse_norm: bool = True, tolerance: float | None = None) -> None:
        self.val = val
        self.fuse_norm = fuse_norm
        self.tolerance = tolerance
        self._swaps: list[Swap] = []
        self.difference: float | None = None

    def before_run(self, runner) -> None:
        # Hooks are not told when testing raises; the loops' run method is.
        # The runner's public test_loop and val_loop would build loops this run does not need.
        for loop in (runner._test_loop, runner._val_loop):
            if isinstance(loop, BaseLoop) and not hasattr(loop.run, 'restores_training_form'):
                loop.run = self._restoring(loop.run)

    def _restoring(self, run):
        @functools.wraps(run)
        def wrapper(*args, **kwargs):
            try:
                return run(*args, **kwargs)
            finally:
                self._undo()

        wrapper.restores_training_form = True
        return wrapper

    def before_test_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        # Not earlier: EMAHook puts the averaged weights into the model in before_test_epoch.
        if batch_idx == 0:
            self._apply(runner, data_batch)

    def before_val_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        if self.val and batch_idx == 0:
            self._apply(runner, data_batch)

    def after_test_epoch(self, runner, metrics=None) -> None:
        self._undo()

    def after_val_epoch(self, runner, metrics=None) -> None:
        self._undo()

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        if self._swaps:
            with self._training_form():
                checkpoint['state_dict'] = weights_to_cpu(get_state_dict(runner.model))

    def _undo(self) -> None:
        for swap in reversed(self._swaps):
            swap.undo()
        self._swaps = []

    @contextmanager
    def _training_form(self) -> Iterator[None]:
        for swap in reversed(self._swaps):
            swap.undo()
        try:
            yield
        finally:
            for swap in self._swaps:
                swap.apply()

    def _apply(self, runner, data_batch) -> None:
        self._undo()
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        swaps = plan_swaps(model, self.fuse_norm)
        layers = {id(swap.old) for swap in swaps if is_reparameterizable(swap.old)}
        if not layers:
            raise ReparameterizeError(
                'ReparameterizeHook found nothing to re-parameterize: the model has no layer with training-time branches. Use an OREPA '
                "backbone or conv_cfg=dict(type='OREPAConv2d'), or take the hook out of custom_hooks (a re-parameterized model needs none)."
            )
        before, dtype = _count(model), next(model.parameters()).dtype
        with torch.no_grad():
            run = dense_outputs(model, data_batch)
            expected = run()
            self._swaps = swaps
            for swap in swaps:
                swap.apply()
            difference = torch.tensor(largest_difference(expected, run()), device=expected[0].device)
        # Every process has to come to the same decision.
        all_reduce(difference, op='max')
        self.difference = difference.item()
        tolerance = TOLERANCES[dtype] if self.tolerance is None else self.tolerance
        runner.logger.info(
            f'Re-parameterized {len(layers)} layers: {before / 1e6:.2f} M parameters before, {_count(model) / 1e6:.2f} M after; largest '
            f'output difference on the first batch {self.difference:.2e} of the output scale (tolerance {tolerance:.0e}).'
        )
        if not self.difference <= tolerance:
            self._undo()
            raise ReparameterizeError(
                f'the re-parameterized model differs from its training form by {self.difference:.2e} of the output scale on the first '
                f'batch, more than the tolerance of {tolerance:.0e}. Usual causes: weights or norm statistics that are not finite or were '
                'not loaded, half precision, a norm that does not directly follow its convolution (try fuse_norm=False). '
                'Set ReparameterizeHook(tolerance=...) if the difference is acceptable.'
            )


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
