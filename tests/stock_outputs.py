"""A model's features, and what its head that sees them whole makes of them; needs nothing of the package under test.

As a script it prints for each folder of a written stock model how far its outputs are from those in the folder.
"""

import importlib
import sys

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import Tensor, nn


def _tensors(value) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else [tensor for item in value for tensor in _tensors(item)]


@torch.no_grad()
def outputs(model: nn.Module, inputs: Tensor) -> list[Tensor]:
    features = model.extract_feat(inputs)
    heads = [getattr(model, name) for name in ('rpn_head', 'bbox_head', 'decode_head', 'head') if getattr(model, name, None) is not None]
    return _tensors(features) + _tensors(heads[0](features))


def main() -> None:
    for folder in sys.argv[1:]:
        cfg = Config.fromfile(f'{folder}/config.py')
        init_default_scope(cfg.default_scope)
        model = cfg.model
        if cfg.default_scope == 'mmpretrain':
            model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
        model = importlib.import_module(f'{cfg.default_scope}.registry').MODELS.build(model)
        model.load_state_dict(torch.load(f'{folder}/model.pth', weights_only=True)['state_dict'], strict=True)
        assert cfg.load_from == f'{folder}/model.pth', cfg.load_from
        expected = torch.load(f'{folder}/expected.pt', weights_only=True)
        found = outputs(model.eval(), torch.load(f'{folder}/inputs.pt', weights_only=True))
        print(max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(expected, found, strict=True)))


if __name__ == '__main__':
    main()
