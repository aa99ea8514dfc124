"""The stock model that a trained network with branches becomes, proved to compute the same."""

from collections.abc import Iterable
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.model import BaseModel

from ..errors import DeployError
from ..reparam import plan_swaps, reparameterize
from .loading import build_model
from .parts import PartComparison
from .stock_config import deploy_stock_blocks, stock_config
from .stock_state import stock_state

# Relative to the outputs' scale: rounding through a hundred layers, but no error in a kernel, a bias or a key.
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-10}


class StockModel(NamedTuple):
    """Stock config and model, in evaluation mode; dtype -> largest difference of a part's outputs; paths of layers that were not called."""

    cfg: Config
    model: BaseModel
    differences: dict[torch.dtype, float]
    unreached: list[str]


def to_stock_model(cfg: Config, model: BaseModel, batches: Iterable[Any]) -> StockModel:
    """The stock model that computes what ``model``, in training form and evaluation mode, computes; norms are kept, for training on.

    The weights are loaded strictly, and :class:`.PartComparison` compares both on ``batches``, each as for ``model.test_step``.

    Raises:
        DeployError: When the model has nothing to re-parameterize, when there is no stock class for it, and when the outputs differ.
    """
    if not plan_swaps(model):
        raise DeployError('the model has no layer with training-time branches: it is the stock model already.')
    stock_cfg, stock = _stock_of(stock_config(cfg), reparameterize(deepcopy(model)))
    comparison = PartComparison(model, stock)
    for batch in batches:
        comparison.run(batch)
    for dtype, difference in comparison.differences.items():
        if not difference <= TOLERANCES[dtype]:
            raise DeployError(
                f"the outputs of the stock model differ from the training form's by {difference:.1e} of their scale in {dtype}, more than "
                f'{TOLERANCES[dtype]:.0e}; nothing was written. Usual cause: weights or norm statistics that are not finite or far out '
                'of range.'
            )
    return StockModel(stock_cfg, stock, comparison.differences, sorted(comparison.unreached))


def _stock_of(cfg: Config, plain: BaseModel) -> tuple[Config, BaseModel]:
    try:
        stock = build_model(cfg)
        state = stock_state(plain, stock)
    except DeployError as error:
        cfg = deploy_stock_blocks(cfg)
        stock = build_model(cfg)
        try:
            state = stock_state(plain, stock)
        except DeployError:
            raise error from None
    _check_stock(stock)
    stock.load_state_dict(state, strict=True)
    if hasattr(plain, 'dataset_meta'):
        stock.dataset_meta = plain.dataset_meta
    return cfg, stock.eval()


def _check_stock(model: BaseModel) -> None:
    ours = [name for name, module in model.named_modules() if type(module).__module__.split('.')[0] == __package__.split('.')[0]]
    if ours:
        raise DeployError(f'"{ours[0]}" is built by orepa_mm even with the stock config: a setting of it is not known here.')
