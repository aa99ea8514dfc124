"""The weights of a re-parameterized network under the stock model's names."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import DeployError


def stock_state(plain: nn.Module, stock: nn.Module) -> dict[str, Tensor]:
    """The state dict that makes ``stock`` compute what ``plain``, a re-parameterized model, computes.

    The keys are the same but where a layer with norms of its own was, such as a Diverse Branch Block, whose plain convolution has a bias
    that the stock one has not. It goes into the norm behind, which passes all else through where the layer did without that norm.

    Raises:
        DeployError: When the keys or shapes of the two differ otherwise.
    """
    state, expected = plain.state_dict(), stock.state_dict()
    for conv in [key.removesuffix('.bias') for key in state if key.endswith('.bias') and key not in expected]:
        if f'{conv}.weight' not in expected:
            continue
        path = _norm_behind(stock, conv)
        if path is None:
            raise DeployError(
                f'the plain form of "{conv}", which had norms of its own, adds a bias, and the stock model has neither a bias nor a batch '
                'norm behind it to take it. Export the model to ONNX instead.'
            )
        bias = state.pop(f'{conv}.bias')
        if f'{path}.running_mean' in state:
            state[f'{path}.running_mean'] = state[f'{path}.running_mean'] - bias
        else:
            norm: Any = stock.get_submodule(path)
            zeros, ones = torch.zeros_like(bias), torch.ones_like(bias)
            passing = dict(weight=ones, bias=bias, running_mean=zeros, running_var=ones - norm.eps, num_batches_tracked=torch.tensor(0))
            state |= {f'{path}.{name}': value for name, value in passing.items()}
    wrong = [f'missing {name}' for name in expected if name not in state]
    wrong += [f'unexpected {name}' for name in state if name not in expected]
    wrong += [f'{name} is {tuple(state[name].shape)}, not {tuple(value.shape)}' for name, value in expected.items()
              if name in state and state[name].shape != value.shape]  # fmt: skip
    if wrong:
        shown = '; '.join(wrong[:5]) + (f' and {len(wrong) - 5} more' if len(wrong) > 5 else '')
        raise DeployError(f'the re-parameterized model is not the stock model of its config: {shown}. Export it to ONNX instead.')
    return {key: state[key] for key in expected}


def _norm_behind(stock: nn.Module, conv: str) -> str | None:
    """Path of the batch norm that is registered next behind a convolution; whether it is called next, the comparison of outputs shows."""
    parent, _, name = conv.rpartition('.')
    names = [other for other, _ in stock.get_submodule(parent).named_children()]
    following = names[names.index(name) + 1 :]
    path = '.'.join(filter(None, (parent, following[0]))) if following else None
    return path if path is not None and isinstance(stock.get_submodule(path), _BatchNorm) else None
