"""For tests of your own."""

from typing import Any

import torch
from torch import nn

from .reparam import plan_swaps, reparameterized
from .reparam.comparison import LayerComparison, largest_difference

# Of the outputs' scale: sums of some hundred terms; in half precision each branch of a block is rounded by itself.
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 8e-2}


@torch.no_grad()
def assert_forms_agree(model: nn.Module, inputs: Any, tolerance: float | None = None) -> None:
    """Check that a model computes the same with its branches and re-parameterized, and leave it as it is.

    Args:
        model: A model, block or layer with branches, in eval mode where its branches have norms.
        inputs: What it is called with: a tensor, a tuple of positional or a dict of keyword arguments.
        tolerance: Largest difference allowed, relative to an output's largest magnitude. Default: by the parameters' dtype, 1e-10 for
            float64, 1e-5 for float32, 1e-2 for float16, 8e-2 for bfloat16.

    Raises:
        AssertionError: Where outputs differ by more, with the layer that differs most, and for a model without branches.
        FuseError: As :func:`.reparameterize`.

    Example:
        >>> assert_forms_agree(model.eval(), torch.randn(2, 3, 64, 64))
    """
    holder = nn.ModuleDict(dict(model=model))  # in which a bare layer can be replaced too
    args, kwargs = ((), inputs) if isinstance(inputs, dict) else (inputs if isinstance(inputs, tuple) else (inputs,), {})
    swaps = plan_swaps(holder)
    assert swaps, 'the model has no branches: there is one form only'
    comparison = LayerComparison(swaps)
    try:
        expected = holder['model'](*args, **kwargs)
    finally:
        comparison.stop()
    with reparameterized(holder):
        difference = largest_difference(expected, holder['model'](*args, **kwargs))
    allowed = TOLERANCES[next(model.parameters()).dtype] if tolerance is None else tolerance
    found = {path.removeprefix('model').lstrip('.'): each.largest for path, each in comparison.differences.items()}
    worst = max(found, key=lambda path: found[path], default='')
    assert difference <= allowed, (
        f'the two forms differ by {difference:.1e} of the output, more than {allowed:.0e}; the layer that differs most is '
        f'"{worst}", by {found.get(worst, 0):.1e}'
    )
