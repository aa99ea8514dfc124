"""What happens around an optimizer's step to one weight that trains as branches."""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..functional import gradient_matrix, multiply_taps
from ..layers import SqueezedConv2d
from ..layers.base import memory_format_of
from ..layers.kernels import OREPAKernel, pull_back_by_autograd

# Of the largest weight: how far a weight may be from its branches and still count as their sum. Other devices add up in another order.
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5}


class BranchUpdate:
    """Branches whose squeezed kernel is a weight of the model: the optimizer steps them in the weight's place.

    Args:
        path: Of the convolution in the model.
        conv: The convolution.
        layer: The class of layers with such branches.
        kernel: Holds the branches and returns their sum [O, I/g, k, k].
        start: How branches start that are made anew, as for :func:`orepa_mm.expand`.
    """

    moves_weight = False  # whether the optimizer steps the weight itself

    def __init__(self, path: str, conv: nn.Conv2d, layer: type[SqueezedConv2d], kernel: Any, start: str) -> None:
        self.path, self.conv, self.layer, self.kernel, self.start = path, conv, layer, kernel, start
        self.weight: nn.Parameter = conv.weight  # type: ignore[assignment]  # torch's stub says Tensor
        self.steps = False  # in this step, as the weight has a gradient
        self._seen: tuple[int, int] | None = None

    def named(self) -> list[tuple[str, nn.Parameter]]:
        """What the optimizer holds in the weight's place while it steps, and in its state dict."""
        return [(f'{self.path}.kernel.{name}', parameter) for name, parameter in self.kernel.named_parameters() if parameter.requires_grad]

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [parameter for _, parameter in self.named()]

    def values(self) -> dict[str, Tensor]:
        """What a state dict holds of the branches."""
        return {name: parameter.detach() for name, parameter in self.kernel.named_parameters()}

    @torch.no_grad()
    def squeezed(self) -> Tensor:
        return self.kernel(memory_format_of(self.conv))

    def _touched(self) -> tuple[int, int]:
        # Torch counts what is written in place; another memory is what .to() and an assignment to .data leave.
        return self.weight._version, self.weight.data_ptr()

    def remember(self) -> None:
        """The weight is the sum of the branches now."""
        self._seen = self._touched()

    def forget(self) -> None:
        """Compare the values before the next step."""
        self._seen = None

    @torch.no_grad()
    def differs(self) -> bool:
        """Whether the weight is no longer the sum of its branches; the values are compared where somebody has written to it."""
        if self._seen == self._touched():
            return False
        self.remember()
        weight = self.weight.detach()
        if next(self.kernel.parameters()).device != weight.device:
            self.kernel.to(weight.device)
        squeezed = self.squeezed()
        allowed = TOLERANCES[squeezed.dtype] * weight.abs().max()
        if weight.dtype != squeezed.dtype:
            allowed = allowed + 2 * torch.finfo(weight.dtype).eps * weight.abs()  # where it rounds the other way
        return not ((weight.to(squeezed.dtype) - squeezed).abs() <= allowed).all()  # not >, which is False of NaN too

    def kernel_in_model(self) -> Any:
        """The kernel of a layer that computes what the convolution does."""
        return self.kernel

    @torch.no_grad()
    def renew(self) -> None:
        """Make the branches anew, so that they add up to the weight as it is."""
        self.kernel.reset_parameters()
        self.kernel.represent(self.weight.detach(), self.start)

    @property
    def can_be_captured(self) -> bool:
        """Whether a CUDA graph can do its steps: on a GPU, without autograd."""
        return self.weight.is_cuda and hasattr(self.kernel, 'pull_back')

    def gradients(self, grad: Tensor) -> list[Tensor]:
        """Those of the trained parameters, from that of the weight."""
        grad = grad.to(next(self.kernel.parameters()).dtype)
        own = getattr(self.kernel, 'pull_back', None)
        found = pull_back_by_autograd(self.kernel, grad) if own is None else own(grad)
        return [found[name] for name, parameter in self.kernel.named_parameters() if parameter.requires_grad]

    def before_step(self) -> None:
        grad = self.weight.grad
        self.steps = grad is not None
        if grad is not None:
            for parameter, value in zip(self.parameters, self.gradients(grad), strict=True):
                parameter.grad = value

    @torch.no_grad()
    def after_step(self, skipped: Tensor | None) -> None:
        """Write the branches' sum into the weight; not where ``skipped`` is not zero, as a loss scaler tells a fused optimizer."""
        if not self.steps:
            return
        for parameter in self.parameters:
            parameter.grad = None
        squeezed = self.squeezed()
        self.weight.copy_(squeezed if skipped is None else torch.where(skipped > 0, self.weight, squeezed.to(self.weight.dtype)))
        self.remember()


class MatrixUpdate(BranchUpdate):
    """Linear branches with fixed scales, which SGD moves as it moves the weight itself by its gradient times a matrix.

    With scales s_b and linear maps A_b the matrix is ``sum_b s_b^2 A_b A_b^T``; momentum and weight decay are linear too. Nothing is
    squeezed, and the optimizer's state is that of the weight.
    """

    moves_weight = True
    can_be_captured = False

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._grad: Tensor | None = None
        self._matrix: Tensor | None = None

    @property
    def matrix(self) -> Tensor:
        """[O, k*k, k*k], in the weight's dtype or float32."""
        if self._matrix is None or self._matrix.device != self.weight.device:
            kernel = self.kernel
            exact = gradient_matrix(dict(zip(kernel.branches, kernel.scale, strict=True)), kernel.kernel_size)
            self._matrix = exact.to(self.weight.device, self.kernel.scale.dtype)
        return self._matrix

    def named(self) -> list[tuple[str, nn.Parameter]]:
        return [(f'{self.path}.weight', self.weight), (f'{self.path}.kernel.scale', self.kernel.scale)]

    def values(self) -> dict[str, Tensor]:
        return dict(scale=self.kernel.scale.detach())

    def take_over(self, optimizer: Optimizer) -> None:
        """Give the weight the momentum that its branches have, whose sum it is, and drop the branches."""
        states = {name: optimizer.state.pop(parameter, {}) for name, parameter in self.kernel.named_parameters()}
        momenta = {name: state.get('momentum_buffer') for name, state in states.items() if name != 'scale'}
        if any(momentum is not None for momentum in momenta.values()):
            there = {name: torch.zeros_like(self.kernel.get_parameter(name)) if m is None else m for name, m in momenta.items()}
            whole = torch.func.functional_call(self.kernel, there, ())
            optimizer.state[self.weight] = dict(momentum_buffer=torch.empty_like(self.weight).copy_(whole.detach()))
        for name in momenta:  # the scales and the weight are all it takes
            setattr(self.kernel, name, nn.Parameter(torch.empty_like(self.kernel.get_parameter(name), device='meta')))

    def differs(self) -> bool:
        return False

    def forget(self) -> None:
        self._matrix = None  # of other scales

    def renew(self) -> None:
        pass

    def kernel_in_model(self) -> Any:
        kernel = deepcopy(self.kernel).to_empty(device=self.weight.device)
        kernel.reset_parameters()
        kernel.represent(self.weight.detach(), self.start)
        return kernel

    def before_step(self) -> None:
        self._grad, self.steps = self.weight.grad, self.weight.grad is not None
        if self._grad is not None:
            matrix = self.matrix
            self.weight.grad = multiply_taps(self._grad.to(matrix.dtype), matrix).to(self.weight.dtype)

    def after_step(self, skipped: Tensor | None) -> None:
        if self.steps:
            self.weight.grad, self._grad = self._grad, None


def is_linear(kernel: nn.Module) -> bool:
    """Whether all branches of a kernel have one weight each, in which they are linear."""
    return isinstance(kernel, OREPAKernel) and not {'sequence', 'separable'} & set(kernel.branches)
