"""Branches beside the optimizer of a run."""

import inspect
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ..checkpoints.beside import has_branches_beside
from ..errors import BranchesError, NotHeldError
from ..layers import SqueezedConv2d
from ..optim import AttachedBranches, attach_branches, attached_to
from ..optim.attached import drawn_alike
from ..reparam import reparameterize
from .changed_parameters import changing_averages, optimizers_of, wrap_again
from .distributed import unwrapped


@HOOKS.register_module()
class BranchesHook(Hook):
    """Trains the convolutions of a model as branches, which stand beside the optimizer: :func:`orepa_mm.attach_branches` in a run.

    The model is the stock network at every moment, and so are its checkpoints: nothing is needed to test them, and nothing is converted.
    Any model of any toolbox will do, with any optimizer constructor; ``custom_keys`` of a ``paramwise_cfg`` go by the names of the stock
    parameters and hold for their branches. The optimizer's state in a checkpoint has the branches, so ``resume`` goes on with them.

    Two lines in any stock config, whose own hooks stay::

        custom_imports = dict(imports=['orepa_mm'], allow_failed_imports=False)
        default_hooks = dict(branches=dict(type='BranchesHook', pattern='backbone'))

    Layers with branches that the model has, such as those of an ``OREPAResNet``, become plain ones and hand their branches over, with what
    a checkpoint has loaded into them.

    Fires before a training, and where a checkpoint with branches in its optimizer's state is read.

    Args:
        method, branches, start, kernel_sizes, pattern, first_layer, scales: As for :func:`orepa_mm.attach_branches`. ``pattern`` is
            searched in the paths of convolutions: ``'backbone'`` for that part of a model, None for the whole.

    Raises:
        BranchesError: As :func:`orepa_mm.attach_branches`, and with ``paramwise_cfg=dict(custom_l2=True)``.
        ExpandError, FuseError: As :func:`orepa_mm.attach_branches`.
    """

    priority = 'HIGHEST'  # before checkpoints are compared with the model

    def __init__(self, **options: Any) -> None:
        inspect.signature(attach_branches).bind(None, None, **options)  # a wrong name raises now, and not when the training starts
        self.options = options
        self.attached: list[AttachedBranches] = []  # one for each optimizer of the run

    def before_train(self, runner: Runner) -> None:
        self._attach(runner)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        # Before weights and states are loaded: they are of plain convolutions and of their branches.
        if optimizers_of(runner) and has_branches_beside(checkpoint):
            self._attach(runner)

    def _attach(self, runner: Runner) -> None:
        optimizers = optimizers_of(runner)
        if self.attached and all(attached_to(optimizer) for optimizer in optimizers):
            return
        if any(getattr(optimizer, 'decays_kernels', False) for optimizer in optimizers):
            raise BranchesError(
                'BranchesHook: paramwise_cfg.custom_l2=True decays the kernels of layers with branches in the model, and these are beside '
                'it: take one of the two out'
            )
        model = unwrapped(runner.model)
        inside = any(isinstance(module, SqueezedConv2d) for module in model.modules())
        unheld: list[NotHeldError] = []
        for optimizer in optimizers:
            try:
                with drawn_alike(runner.seed):
                    self.attached.append(attach_branches(model, optimizer, **self.options))
                self.attached[-1].logger = runner.logger
            except NotHeldError as error:
                unheld.append(error)
        if not self.attached:
            raise unheld[0]
        if inside:
            for average in changing_averages(runner):
                reparameterize(average)
            wrap_again(runner)
        count = sum(len(attached.updates) for attached in self.attached)
        runner.logger.info(f'BranchesHook: {count} kernels train as branches beside the optimizer; the model is the plain network.')
