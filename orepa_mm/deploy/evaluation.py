"""The stock metric of an exported network: the config's own test dataset and evaluator around the file's predictions."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from torch import Tensor

from ..errors import UsageError
from ..registry import scope_of
from .loading import build_model
from .quantize import OnnxNetwork

TASKS = dict(mmpretrain='classification', mmseg='segmentation')


def evaluate(cfg: Config, network: OnnxNetwork, progress: Callable[[Iterable[Any]], Iterable[Any]] = iter) -> dict[str, float]:
    """The metrics, by name, of a network on the test set of a config of mmpretrain or mmseg: its dataset, pipeline and evaluator.

    Each picture is one call on the whole of it, as the pipeline leaves it.

    Raises:
        UsageError: When the config is of another task than the network, or has no test set, or one with another number of classes.
    """
    scope = scope_of(cfg)
    if TASKS.get(scope) != network.task:
        raise UsageError(f'{cfg.filename}: is a config of {scope}, and the network does {network.task}.')
    if cfg.get('test_dataloader') is None or cfg.get('test_evaluator') is None:
        raise UsageError(f'{cfg.filename}: has no test set (test_dataloader and test_evaluator).')
    init_default_scope(scope)
    loader = Runner.build_dataloader(cfg.test_dataloader)
    evaluator = Evaluator(cfg.test_evaluator)
    evaluator.dataset_meta = loader.dataset.metainfo
    answer = (_classified if network.task == 'classification' else _segmented)(cfg, network)
    classes = len(loader.dataset.metainfo.get('classes') or ())
    for batch in progress(loader):
        # What loaders of MM give is BGR; the file takes RGB.
        pictures = [picture.flip(0) if len(picture) == 3 else picture for picture in batch['inputs']]
        outputs = [torch.from_numpy(network(np.ascontiguousarray(picture[None].numpy()))) for picture in pictures]
        if classes and outputs[0].shape[1] not in (classes, 1):
            raise UsageError(
                f"{cfg.filename}: the test set has {classes} classes, and the network's {network.output} {outputs[0].shape[1]}."
            )
        samples = [answer(output, sample) for output, sample in zip(outputs, batch['data_samples'], strict=True)]
        evaluator.process(data_samples=samples, data_batch=batch)
    return {name: float(value) for name, value in evaluator.evaluate(len(loader.dataset)).items() if np.ndim(value) == 0}


def _classified(cfg: Config, network: OnnxNetwork) -> Callable[[Tensor, Any], Any]:
    kind = network.facts.get('scores')

    def answer(scores: Tensor, sample: Any) -> Any:
        if kind == 'sigmoid logits':  # metrics of several labels read the scores
            return sample.set_pred_score(scores[0].sigmoid())
        scores = scores[0] if kind == 'probabilities' else scores[0].softmax(0)
        return sample.set_pred_score(scores).set_pred_label(scores.argmax(0, keepdim=True))

    return answer


def _segmented(cfg: Config, network: OnnxNetwork) -> Callable[[Tensor, Any], Any]:
    segmentor = build_model(cfg)  # for its rule from logits to a label map; its weights are not used
    return lambda logits, sample: segmentor.postprocess_result(logits, [sample])[0]
