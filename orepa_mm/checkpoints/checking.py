"""Telling before a run whether a checkpoint fits the model."""

import warnings
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, PlainKernelError, some
from ..layers import ReparameterizableConv2d
from .reading import is_local, read_checkpoint, state_dict_of, under

STEM = ('conv1.', 'bn1.', 'stem.')  # of a ResNet


def check_state_dict(model: nn.Module, state: dict[str, Tensor], path: str | Path, *, partial: bool = False, strict: bool = False) -> None:
    """Refuse weights that loaders which are not strict would drop in silence.

    Args:
        model: The model the weights are meant for.
        state: Its state dict from the checkpoint.
        path: Where it is from, for the message.
        partial: Accept keys that are missing or of another shape (fine-tuning) as long as half of the model's weights fit, or the
            checkpoint has nothing of the parts they belong to, as that of a backbone alone.
        strict: Refuse weights as well that the model has no place for.

    Raises:
        CheckpointError: When the form (with branches, or plain) or the architecture is another one, or when the stem does not fit.
    """
    given, state = state, dict(state)
    for name, module in model.named_modules():
        # Parents first, as in loading: a backbone may convert keys that its layers would refuse.
        if hasattr(module, 'adapt_state_dict'):
            try:
                module.adapt_state_dict(state, f'{name}.' if name else '')
            except PlainKernelError as error:
                raise CheckpointError(f'{path}: {error}') from None
    _check_stem(model, state, path)
    expected = {key: value for key, value in model.state_dict().items() if not key.startswith('data_preprocessor.')}
    layers = {f'{name}.weight': m for name, m in model.named_modules() if isinstance(m, ReparameterizableConv2d)}
    reshaped_kernels = [key for key, layer in layers.items() if key in state and tuple(state[key].shape) != layer.plain_shape]
    for key in reshaped_kernels:  # plain ones, which stand for the branches of their layer
        inside = key.removesuffix('weight')
        expected = {name: value for name, value in expected.items() if not name.startswith(inside) or name == f'{inside}bias'}
        expected[key] = torch.empty(layers[key].plain_shape, device='meta')
    plain = [key for key in layers if key in state and key not in reshaped_kernels]
    if plain:
        raise CheckpointError(
            f'{path}: holds plain kernels ({some(plain)}) where the config builds layers ({type(layers[plain[0]]).__name__}) whose '
            'branches have norms, and which cannot start from them: it is re-parameterized, or of a stock model. Give the training-form '
            'checkpoint, or the stock config (tools/model_converters/reparameterize_model.py writes one).'
        )
    branches = [key for key in state if '.kernel.' in key and key not in expected and f'{key.split(".kernel.")[0]}.weight' in expected]
    if branches:
        raise CheckpointError(
            f'{path}: holds training-time branches ({some(branches)}) where the config builds plain convolutions. Use the config '
            "with the OREPA backbone or conv_cfg=dict(type='OREPAConv2d'), which also tests in deployed form."
        )
    odd = [key for key, value in expected.items() if key in state and not _is_like(state[key], value)]
    if odd:
        value = state[odd[0]]
        raise CheckpointError(
            f'{path}: {len(odd)} weights are no plain floating-point tensors ({odd[0]} is {value.dtype}, {value.layout}): it is quantized, '
            'sparse or of something else. Give the checkpoint of the training.'
        )
    missing = [key for key in expected if key not in state]
    reshaped = {key: f'{key} {tuple(state[key].shape)} for {tuple(v.shape)}' for key, v in expected.items()
                if key in state and state[key].shape != v.shape}  # fmt: skip
    left = [key for key in state if key not in expected and not is_no_weight(key)]
    if missing and left:
        missing, left = _reported(model, {key: value for key, value in given.items() if key not in reshaped}, path)
        missing = [key for key in missing if key in expected and key not in reshaped]
        left = [key for key in left if not is_no_weight(key)]
    folded = [key for key in state if key.endswith('.bias') and key not in expected and _lacks_norm(key, given, missing)]
    if folded:
        raise CheckpointError(
            f'{path}: its norms are folded into the convolutions, which have biases ({some(folded)}) that those of the config have not. '
            'Give the checkpoint from before the folding; exporters and inference compilers fold norms by themselves.'
        )
    wrong = [*missing, *reshaped]
    absent = {_part(key) for key in expected} - {_part(key) for key in state}
    enough = len(wrong) <= len(expected) / 2 or (len(wrong) < len(expected) and {_part(key) for key in wrong} <= absent)
    if wrong and not (partial and enough):
        details = [f'{len(missing)} of {len(expected)} keys missing ({some(missing)})'] if missing else []
        details += [f'{len(reshaped)} of another shape ({some(list(reshaped.values()))})'] if reshaped else []
        raise CheckpointError(
            f'{path}: does not fit the model of the config: {"; ".join(details)}. It is of another architecture, width or '
            'number of classes: change the config or the checkpoint.'
        )
    if strict and left:
        raise CheckpointError(
            f'{path}: holds {len(left)} weights that the model of the config has no place for ({some(left)}): it is of another model, '
            'give the config it was trained with.'
        )


def _part(key: str) -> str:
    """Backbone, neck or head."""
    return key.split('.')[0]


def _reported(model: nn.Module, state: dict[str, Tensor], path: str | Path) -> tuple[list[str], list[str]]:
    """The missing and the unexpected keys as the model itself reports them: many rename keys as they load.

    A copy on the meta device is asked, which has no values that loading could change.
    """
    memo: dict[int, Tensor] = {id(p): nn.Parameter(torch.empty_like(p, device='meta'), p.requires_grad) for p in model.parameters()}
    memo |= {id(buffer): torch.empty_like(buffer, device='meta') for buffer in model.buffers()}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # that copying to the meta device does nothing
        try:
            missing, unexpected = deepcopy(model, memo).load_state_dict(state, strict=False)
        except RuntimeError as error:
            raise CheckpointError(f'{path}: does not fit the model of the config: {" ".join(str(error).split())}') from None
    return missing, unexpected


def is_no_weight(key: str) -> bool:
    """Whether a network computes the same without it; a gradient_matrix is of a run that kept it in the model."""
    return key.startswith('data_preprocessor.') or 'num_batches_tracked' in key or key.endswith('.gradient_matrix')


def _is_like(value: Tensor, expected: Tensor) -> bool:
    """Whether a value can be copied into a weight without a change of its meaning."""
    return value.layout == expected.layout and value.is_floating_point() == expected.is_floating_point()


def _lacks_norm(bias: str, given: dict[str, Tensor], missing: list[str]) -> bool:
    """Whether the bias of a convolution is there where its kernel is and a norm beside it is not."""
    conv = bias.removesuffix('.bias')
    parent = conv.rpartition('.')[0]
    return f'{conv}.weight' in given and any(key.startswith(parent) and key.endswith('.running_mean') for key in missing)


def _check_stem(model: nn.Module, state: dict[str, Tensor], path: str | Path) -> None:
    """The stem must fit even where other layers may be new: everything behind it was trained on its output."""
    for name, module in model.named_modules():
        if not hasattr(module, 'make_res_layer'):  # the ResNets of the three toolboxes
            continue
        expected, found = module.state_dict(), under(name, state)
        stem = [key for key in expected if key.startswith(STEM)]
        given = {key: value for key, value in found.items() if key.startswith(STEM)}
        if not given or not any('conv1' in key or key.startswith('stem.') for key in stem):
            continue
        rest = [key for key in found if key not in given], [key for key in expected if key not in stem]
        same_form = any('.kernel.' in key for key in rest[0]) == any('.kernel.' in key for key in rest[1])
        deep, wants_deep = (any('.kernel.stages.' in key for key in keys) for keys in (given, stem))
        stacked, wants_stacked = (any(key.startswith('stem.') for key in keys) for keys in (given, stem))
        # Weights for images of other channels are left out, and said to be, as by the stock backbone.
        reshaped = [key for key in stem if key in given and _but_inputs(given[key]) != _but_inputs(expected[key])]
        if stacked != wants_stacked:
            kinds = 'ResNetV1c or V1d (OREPAResNetV1c, OREPAResNetV1d)' if stacked else 'ResNet (OREPAResNet)'
            remedy = f'take {kinds}, or set deep_stem={stacked} of the backbone'
        elif same_form and deep and not wants_deep:
            remedy = 'its deep linear stem can be trained as a plain one: set plain_stem=True of the backbone'
        elif reshaped:
            shapes = f'{reshaped[0]} {tuple(given[reshaped[0]].shape)} for {tuple(expected[reshaped[0]].shape)}'
            remedy = f'{shapes} is of another shape: set stem_channels and in_channels of the backbone to those of the checkpoint'
        else:
            continue
        raise CheckpointError(
            f'{path}: does not fit the model of the config, its stem is another one; {remedy}, or take another checkpoint.'
        )


def _but_inputs(kernel: Tensor) -> torch.Size:
    """The shape without the number of input channels."""
    return kernel.shape[:1] + kernel.shape[2:]


def check_pretrained(model: nn.Module) -> None:
    """Check every local ``init_cfg=dict(type='Pretrained')`` of a model before it is loaded.

    Raises:
        CheckpointError: As :func:`read_checkpoint` and :func:`check_state_dict`.
    """
    for module in model.modules():
        configs = getattr(module, 'init_cfg', None) or []
        for config in [configs] if isinstance(configs, dict) else configs:
            if 'checkpoint' in config and is_local(config['checkpoint']):
                path, prefix = config['checkpoint'], config.get('prefix') or ''
                state = state_dict_of(read_checkpoint(path))
                selected = under(prefix.removesuffix('.'), state)
                if not selected:
                    raise CheckpointError(
                        f'{path}: has no weights under the prefix "{prefix}" of init_cfg '
                        f'(its keys begin with {some(sorted({key.split(".")[0] for key in state}))}).'
                    )
                check_state_dict(module, selected, path, partial=True)
