"""A step of all weights that train as branches: one by one, and on a GPU by two CUDA graphs.

Pulling back and squeezing are many small operations, and a GPU does them faster than Python starts them.
"""

import logging

import torch
from torch import Tensor

from ..layers.squeeze_graph import MOST_CAPTURES, capture, warm_up
from .updates import BranchUpdate

logger = logging.getLogger(__name__)


class _Graphs:
    """The backward pass of the squeezing, and the squeezing, over the memory of branches and weights."""

    def __init__(self, updates: list[BranchUpdate]) -> None:
        self.updates, self._memory = updates, _memory_of(updates)
        self._parameters = [parameter for update in updates for parameter in update.parameters]
        self._grads = [torch.zeros_like(update.weight) for update in updates]
        warm_up(self._gradients)
        warm_up(lambda: [update.squeezed() for update in updates])
        self._found, self._pull_back, pool = capture(self._gradients)
        _, self._squeeze, _ = capture(self._write, pool)

    def _gradients(self) -> list[Tensor]:
        return [value for update, grad in zip(self.updates, self._grads, strict=True) for value in update.gradients(grad)]

    @torch.no_grad()
    def _write(self) -> list[Tensor]:
        for update in self.updates:
            update.weight.copy_(update.squeezed())
        return []

    def is_valid(self) -> bool:
        """Whether branches and weights are in the memory that was captured."""
        return self._memory == _memory_of(self.updates)

    def before_step(self) -> None:
        torch._foreach_copy_(self._grads, [grad for update in self.updates if (grad := update.weight.grad) is not None])
        self._pull_back()
        for parameter, grad in zip(self._parameters, self._found, strict=True):
            parameter.grad = grad
        for update in self.updates:
            update.steps = True  # a loss scaler may have each of them end its step by itself

    def after_step(self) -> None:
        self._squeeze()
        for parameter in self._parameters:
            parameter.grad = None
        for update in self.updates:
            update.remember()


def _memory_of(updates: list[BranchUpdate]) -> list[int]:
    return [tensor.data_ptr() for update in updates for tensor in (update.weight, *update.kernel.parameters())]


class Steps:
    """What :class:`.BranchUpdate` does for one weight, for all of them."""

    def __init__(self) -> None:
        self._graphs: _Graphs | None = None
        self._used: _Graphs | None = None  # in this step
        self._captures = 0

    def before(self, updates: list[BranchUpdate]) -> None:
        able = [update for update in updates if update.can_be_captured]
        self._used = self._prepared(able) if all(update.weight.grad is not None for update in able) else None
        if self._used is not None:
            self._used.before_step()
        for update in updates:
            if self._used is None or update not in able:
                update.before_step()

    def after(self, updates: list[BranchUpdate], skipped: Tensor | None) -> None:
        used = self._used if skipped is None else None
        if used is not None:
            used.after_step()
        for update in updates:
            if used is None or update not in used.updates:
                update.after_step(skipped)

    def _prepared(self, able: list[BranchUpdate]) -> _Graphs | None:
        if not able or self._captures > MOST_CAPTURES:
            return None
        if self._graphs is None or self._graphs.updates != able or not self._graphs.is_valid():
            self._captures += 1
            self._graphs, reason = None, f'branches were replaced or moved {MOST_CAPTURES} times'
            try:
                if self._captures <= MOST_CAPTURES:
                    self._graphs = _Graphs(able)
            except RuntimeError as error:  # what CUDA raises, out of memory included
                self._captures = MOST_CAPTURES + 1
                reason = str(error.__context__ or error).strip().splitlines()[0]  # the first error, and not that the capture ended
            if self._graphs is None:
                logger.warning('Without a CUDA graph the branches of each weight step by themselves, which takes longer: %s.', reason)
        return self._graphs
