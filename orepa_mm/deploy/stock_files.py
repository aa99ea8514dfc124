"""Writing a deployed network as files that need nothing of this package."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mmengine
import torch
from mmengine.config import Config
from torch import Tensor, nn

from ..errors import UsageError
from ..files import replacing, save
from ..version import __version__
from .classifiers import preprocessing
from .stock_model import StockModel

LOAD_FROM = """
# A training goes on from the weights beside this file.
load_from = '{{ fileDirname }}/model.pth'
"""


def provenance(checkpoint: Path, stock: StockModel) -> dict[str, Any]:
    """What the weights were made from, and how far their outputs are from it."""
    names = {torch.float32: 'float32', torch.float64: 'float64'}
    return dict(
        source=checkpoint.name,
        source_sha256=hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
        orepa_mm_version=__version__,
        torch_version=str(torch.__version__),
        mmengine_version=mmengine.__version__,
        largest_difference={names[dtype]: difference for dtype, difference in stock.differences.items()},
    )


def write_stock_model(out_dir: Path, stock: StockModel, checkpoint: Path) -> None:
    """Write ``config.py`` and ``model.pth``: the stock model for its toolbox, loaded strictly by any of its tools.

    Raises:
        UsageError: When the files cannot be written; what was there before is untouched.
    """
    text = _text_of(stock.cfg)
    meta = dict(provenance(checkpoint, stock), cfg=text)  # the inferencers of the toolboxes look for a config here
    dataset_meta = getattr(stock.model, 'dataset_meta', None)
    if dataset_meta:
        meta['dataset_meta'] = dataset_meta
    with _new_folder(out_dir), replacing(out_dir / 'config.py') as config:
        config.write_text(text + LOAD_FROM, encoding='utf-8')
        save(dict(meta=meta, state_dict=_tensors(stock.model.state_dict())), out_dir / 'model.pth')


def write_classifier(out_dir: Path, stock: StockModel, checkpoint: Path, library: str, name: str, model: nn.Module) -> None:
    """Write ``model.pth``, the bare state dict of a classifier of torchvision or timm, and ``model.json``, which says of which.

    Raises:
        UsageError: As :func:`write_stock_model`.
    """
    facts = dict(library=library, model=name, num_classes=len(model.get_parameter('fc.bias')), input=preprocessing(stock.cfg))
    classes = (getattr(stock.model, 'dataset_meta', None) or {}).get('classes')
    facts |= dict(classes=classes) if classes else {}
    facts |= provenance(checkpoint, stock)
    with _new_folder(out_dir), replacing(out_dir / 'model.json') as description:
        description.write_text(json.dumps(facts, indent=2) + '\n', encoding='utf-8')
        save(_tensors(model.state_dict()), out_dir / 'model.pth')


def _tensors(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}


@contextmanager
def _new_folder(path: Path) -> Iterator[None]:
    """A folder that is gone again when the block raises, if it was not there before."""
    existed = path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UsageError(f'{path}: cannot be written: {error.strerror or error}.') from error
    finally:
        if not existed and path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def _text_of(cfg: Config) -> str:
    """A config as it is written to a file, and read again to see that nothing is lost."""
    text = cfg.pretty_text
    if Config.fromstring(text, file_format='.py').to_dict() != cfg.to_dict():
        raise UsageError('the config holds something that Python literals cannot say, so it cannot be written as text.')
    return text
