"""The branches of an optimizer: in its steps, in its state dict, and on their way into the model."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..errors import BranchesError
from ..layers import SqueezedConv2d
from ..layers.adapting import branches_in
from ..layers.base import memory_format_of, shape_of, share_hooks
from ..reparam.prune import branches_below, check_threshold, kernels_with_branches
from ..torch_versions import keep_step_hooks, set_submodule
from .groups import exchange
from .prune import drop_branches_of
from .steps import Steps
from .updates import BranchUpdate, MatrixUpdate

logger = logging.getLogger(__name__)

KEY = 'branches'  # in the optimizer's state dict
HELD = ('params', 'param_names')  # in its groups
_attached: 'WeakKeyDictionary[Optimizer, AttachedBranches]' = WeakKeyDictionary()


def attached_to(optimizer: Optimizer) -> 'AttachedBranches | None':
    """What :func:`.attach_branches` has attached to an optimizer."""
    return _attached.get(optimizer)


@contextmanager
def drawn_alike(seed: int = 0) -> Iterator[None]:
    """Random numbers follow from ``seed`` meanwhile, and torch's generators go on afterwards as if none had been drawn."""
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


class AttachedBranches:
    """Branches that an optimizer trains in the place of a model's weights, as :func:`.attach_branches` returns them.

    Torch's hooks around ``optimizer.step()`` do it: before the step each weight's gradient is pulled back through the squeezing to its
    branches, which take the weight's place in the groups; after the step the weight is back, and is the branches' new sum.

    Attributes:
        updates: One for each weight that trains as branches: ``update.path`` in the model, ``update.kernel`` with the branches.
        logger: Is told of branches that are made anew.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, updates: list[BranchUpdate]) -> None:
        self.model, self.optimizer, self.updates, self.logger = model, optimizer, updates, logger
        self._plain: list[dict[str, Any]] | None = None  # the groups' weights, while branches are in their place
        self._loading: dict[str, dict[str, Tensor]] | None = None
        self._versions: list[int] = []
        self._steps = Steps()
        keep_step_hooks()
        self._handles = [
            # Where a whole training step is compiled, the optimizer's is traced, and these are not for that.
            optimizer.register_step_pre_hook(torch.compiler.disable(self._before_step)),
            optimizer.register_step_post_hook(torch.compiler.disable(self._after_step)),
            optimizer.register_state_dict_pre_hook(lambda _: self._put_in()),
            optimizer.register_state_dict_post_hook(self._after_saving),
            optimizer.register_load_state_dict_pre_hook(self._before_loading),
            optimizer.register_load_state_dict_post_hook(self._after_loading),
        ]
        self._drop_states()
        _attached[optimizer] = self

    def renew(self) -> None:
        """Make all branches anew from the weights as they are, without momentum.

        A step does this for weights that somebody has written to since the last one. Torch's version counter tells, which does not see
        what is written to ``weight.data``: call this after that.
        """
        self._renew(self.updates)

    def prune(self, threshold: float) -> dict[str, list[str]]:
        """Move branches that add less than ``threshold`` to their weight into the plain branch, as :func:`.prune_branches` does.

        What stays keeps its momentum. A state dict saved afterwards resumes into unpruned branches, which it prunes. Branches of fixed
        scales that SGD trains are one kernel already, and are passed over.

        Returns:
            The names of the branches that are gone, for each kernel that can be pruned.

        Raises:
            PruneError: For a threshold outside 0..1.
        """
        check_threshold(threshold)
        gone: dict[str, list[str]] = {}
        for update in self.updates:
            below = {} if isinstance(update, MatrixUpdate) else branches_below(update.kernel, threshold)
            if below:
                drop_branches_of(update.kernel, below, [self.optimizer])
            gone |= {'.'.join(filter(None, (update.path, path))): names for path, names in below.items()}
        return gone

    def training_form(self) -> nn.Module:
        """A copy of the model with its branches in it, to save their state dict or to look at them."""
        model = deepcopy(self.model)
        kernels = {update.path: deepcopy(update.kernel_in_model()) for update in self.updates}
        for path, update in self._places():
            conv: Any = model.get_submodule(path)
            set_submodule(model, path, _layer(update, conv, kernels[update.path]))
        return model

    def move_into_model(self) -> None:
        """Put the branches into the model, in place of its convolutions, and end what was attached.

        The optimizer holds them and their states from then on, as if the model had been expanded before it was built. Branches of fixed
        scales that SGD trains are made anew.

        Raises:
            BranchesError: For a model that is a bare convolution, convolutions of other classes than ``nn.Conv2d``, and weights in half
                precision. Nothing is changed then.
        """
        layers = {update.path: _layer(update, update.conv, update.kernel_in_model()) for update in self.updates}
        places = self._places()
        if any(path == '' for path, _ in places):
            raise BranchesError('a bare convolution cannot be replaced from outside: wrap it in nn.Sequential')
        self._end()
        for update in self.updates:
            self.optimizer.state.pop(update.weight, None)
        kernels: dict[int, list[tuple[str, nn.Parameter]]] = {
            id(update.weight): [(f'{update.path}.{name}', p) for name, p in layers[update.path].named_parameters() if name != 'bias']
            for update in self.updates
        }
        exchange(self.optimizer, kernels)
        for path, update in places:
            share_hooks(self.model.get_submodule(path), layers[update.path])
            set_submodule(self.model, path, layers[update.path])

    def detach(self) -> None:
        """End it: the weights stay as they are, and the optimizer trains them as any other."""
        self._end()
        for update in self.updates:
            for parameter in update.kernel.parameters():
                self.optimizer.state.pop(parameter, None)

    def _end(self) -> None:
        self._put_back()
        for handle in self._handles:
            handle.remove()
        del _attached[self.optimizer]

    def _places(self) -> list[tuple[str, BranchUpdate]]:
        """Every path in the model at which a weight with branches is, those of shared ones more than once."""
        by_weight = {id(update.weight): update for update in self.updates}
        found = []
        for path, module in self.model.named_modules(remove_duplicate=False):
            update = by_weight.get(id(dict(module.named_parameters(recurse=False)).get('weight')))
            found += [(path, update)] if update is not None else []
        return found

    # The groups, in which branches take the place of their weights for a step and for a state dict

    def _put_in(self) -> None:
        self._put_back()
        self._plain = [{key: group[key] for key in HELD if key in group} for group in self.optimizer.param_groups]
        exchange(self.optimizer, {id(update.weight): update.named() for update in self.updates})
        for update in self.updates:
            if not update.moves_weight and self.optimizer.state.pop(update.weight, None):
                self._put_back()
                raise BranchesError(
                    f'{type(self.optimizer).__name__}, or a wrapper of it such as Lookahead, keeps a state of the weights, in whose place '
                    'branches are: use another, or expand(model) before it is built'
                )

    def _drop_states(self) -> None:
        """Of steps without branches, whose momentum is that of the weights."""
        for update in self.updates:
            if not update.moves_weight:
                self.optimizer.state.pop(update.weight, None)

    def _put_back(self) -> None:
        if self._plain is not None:
            # By place: load_state_dict makes the groups' dicts anew.
            for group, held in zip(self.optimizer.param_groups, self._plain, strict=True):
                for key in HELD:
                    group.pop(key, None)
                group |= held
            self._plain = None

    # A step

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        self._put_back()  # of a step that raised
        closure = args[1] if len(args) > 1 else kwargs.get('closure')
        changed = None
        if closure is not None:
            found = _evaluated(closure)
            changed = ((args[0], found, *args[2:]), kwargs) if len(args) > 1 else (args, kwargs | dict(closure=found))
        self._renew([update for update in self.updates if update.differs()])
        self._steps.before(self.updates)
        self._versions = [update.weight._version for update in self.updates]
        self._put_in()
        return changed

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._put_back()
        for update, version in zip(self.updates, self._versions, strict=True):
            if not update.moves_weight and update.weight._version != version:
                raise BranchesError(
                    f'{type(optimizer).__name__} steps the weights it was built with instead of those in its param_groups, so branches '
                    'cannot take their place: use another optimizer, or expand(model) before it is built'
                )
        skipped = getattr(optimizer, 'found_inf', None)  # what a loss scaler leaves to a fused optimizer's step
        self._steps.after(self.updates, skipped)

    def _renew(self, updates: list[BranchUpdate]) -> None:
        if not updates:
            return
        with drawn_alike():
            for update in updates:
                update.renew()
                for parameter in update.kernel.parameters():
                    self.optimizer.state.pop(parameter, None)
        self.logger.info('The branches of %d of %d weights were made anew from the weights as they are.', len(updates), len(self.updates))

    # State dicts

    def _after_saving(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
        self._put_back()
        state_dict[KEY] = {update.path: update.values() for update in self.updates}

    def _before_loading(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
        self._put_back()
        self._loading = state_dict.get(KEY)
        if self._loading is None:
            return
        kernels, before = self._fitting(self._loading), {update.path: update.kernel for update in self.updates}
        self._use(kernels)
        self._put_in()
        here, there = ([len(group['params']) for group in groups] for groups in (optimizer.param_groups, state_dict['param_groups']))
        if here != there:
            self._put_back()
            self._use(before)
            raise BranchesError(f'the state dict is of an optimizer with {there} parameters in its groups, and this one has {here}')

    @torch.no_grad()
    def _after_loading(self, optimizer: Optimizer) -> None:
        self._put_back()
        if self._loading is None:
            self._drop_states()
            self._renew(self.updates)
        for update in self.updates:
            for name, value in (self._loading or {}).get(update.path, {}).items():
                update.kernel.get_parameter(name).copy_(value)
            update.forget()
        self._loading = None

    def _use(self, kernels: dict[str, nn.Module]) -> None:
        for update in self.updates:
            update.kernel = kernels[update.path]

    def _fitting(self, saved: dict[str, dict[str, Tensor]]) -> dict[str, nn.Module]:
        """The kernels with the branches that a state dict has; those it lacks have been pruned."""
        here = {update.path for update in self.updates}
        if here != saved.keys():
            other = min(here ^ saved.keys())
            raise BranchesError(
                f'the state dict has branches for {len(saved)} weights and the optimizer for {len(here)}, "{other}" in only one: '
                'attach branches with the arguments of the run that was saved'
            )
        kernels = {}
        for update in self.updates:
            kernel, values = update.kernel, saved[update.path]
            if _shapes(update.values()) != _shapes(values):
                kernel = deepcopy(kernel)
                for path, part in kernels_with_branches(kernel):
                    there = branches_in(values, f'{path}.' if path else '')
                    if 'origin' in there:
                        part.drop_branches([name for name in part.branches if name not in there])
                if _shapes(dict(kernel.named_parameters())) != _shapes(values):
                    raise BranchesError(
                        f'"{update.path}": the state dict has the branches {", ".join(values)}, and the optimizer has '
                        f'{", ".join(update.values())}: attach branches with the arguments of the run that was saved'
                    )
            kernels[update.path] = kernel
        return kernels


def _shapes(values: dict[str, Any]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in values.items()}


def _evaluated(closure: Callable[[], Any]) -> Callable[[], Any]:
    """A closure that has been called: gradients must be there before the branches take their weights' place."""
    with torch.enable_grad():
        losses = [closure()]

    def once() -> Any:
        if not losses:
            raise BranchesError('an optimizer that calls its closure more than once in a step cannot train branches: use another')
        return losses.pop()

    return once


def _layer(update: BranchUpdate, conv: nn.Conv2d, kernel: nn.Module) -> SqueezedConv2d:
    """The layer with branches that computes what a convolution does."""
    if type(conv) is not nn.Conv2d:
        raise BranchesError(f'"{update.path}" is a {type(conv).__name__}, for which there is no layer with branches')
    if next(kernel.parameters()).dtype != conv.weight.dtype:
        raise BranchesError(f'"{update.path}" is in half precision and its branches are not: a layer has one dtype')
    layer: Any = update.layer(**shape_of(conv), start=update.start, device='meta').to(memory_format=memory_format_of(conv))  # type: ignore[call-overload]
    layer.kernel, layer.bias = kernel, conv.bias
    return cast(SqueezedConv2d, layer.train(conv.training))
