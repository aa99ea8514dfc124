"""The model of a config with a checkpoint's weights, nothing dropped in silence."""

from copy import deepcopy
from importlib import import_module
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import init_default_scope
from torch import Tensor

from ..checkpoints.checking import check_state_dict
from ..checkpoints.plain_kernels import plain_kernels
from ..checkpoints.reading import read_checkpoint, state_dict_of
from ..errors import CheckpointError, UsageError
from ..registry import scope_of


def build_model(cfg: Config) -> BaseModel:
    """The model of a config as its toolbox builds it: on the CPU, with random weights, in training mode.

    Raises:
        UsageError: When the config names no model or no toolbox.
    """
    scope = scope_of(cfg)
    if not scope or cfg.get('model') is None:
        raise UsageError(f'{cfg.filename}: is no config of a model of a toolbox such as mmdet, mmseg or mmpretrain (model, default_scope).')
    init_default_scope(scope)
    model = deepcopy(cfg.model)
    if scope == 'mmpretrain' and cfg.get('data_preprocessor') and 'data_preprocessor' not in model:
        model.data_preprocessor = dict(type='ClsDataPreprocessor', **cfg.data_preprocessor)
    return import_module(f'{scope}.registry').MODELS.build(model)


def weights_of(checkpoint: dict[str, Any], path: str | Path, ema: bool | None = None) -> dict[str, Tensor]:
    """The state dict of a checkpoint: with ``ema`` the averaged weights of mmengine's ``EMAHook``, with False those that were trained.

    The hook saves the averaged ones as ``state_dict``, which is the default.

    Raises:
        CheckpointError: When ``ema`` is given and the run had no ``EMAHook``.
    """
    state = state_dict_of(checkpoint)
    if ema is None:
        return state
    if 'ema_state_dict' not in checkpoint:
        raise CheckpointError(f'{path}: holds no averaged weights, since its run had no EMAHook; leave --ema and --no-ema out.')
    if ema:
        return state
    trained = {key: value for key, value in state_dict_of(checkpoint['ema_state_dict']).items() if key in state}
    return state | trained


def load_model(cfg: Config, path: str | Path, ema: bool | None = None, *, expand: bool = True) -> BaseModel:
    """The model of a config with all weights of a local checkpoint, nothing missing or left over, in evaluation mode on the CPU.

    It has ``dataset_meta`` (classes, palette) where the checkpoint holds it. Without ``expand`` plain kernels are refused where the config
    has layers with branches.

    Raises:
        CheckpointError: When the file cannot be read or does not fit the config.
    """
    checkpoint = read_checkpoint(path)
    state = weights_of(checkpoint, path, ema)
    model = build_model(cfg)
    plain = [] if expand else plain_kernels(model, state)
    if plain:
        raise CheckpointError(
            f'{path}: is re-parameterized already, or of a stock model: it holds plain kernels ({plain[0]}.weight) where the config builds '
            'layers with branches. Use it with the stock config, or give the training-form checkpoint.'
        )
    check_state_dict(model, state, path, strict=True)
    model.load_state_dict(state, strict=False)  # what is left over are counts of batches and the like
    meta = checkpoint.get('meta') or {}
    if isinstance(meta, dict) and meta.get('dataset_meta'):
        model.dataset_meta = dict(meta['dataset_meta'])
    return model.eval()
