"""Test-time augmentation where the toolboxes' own goes wrong."""

from itertools import chain
from typing import Any

from mmengine.config import Config

from orepa_mm.registry import class_of


def mend_augmentation(cfg: Config) -> None:
    """Put classes that are right in the place of two stock ones, in a config whose model is augmented."""
    if cfg.default_scope == 'mmseg':
        from mmseg.models import SegTTAModel
        from mmseg.registry import MODELS

        @MODELS.register_module(force=True)
        class OneChannelTTAModel(SegTTAModel):
            """The stock class takes the sigmoid of a single channel, which is a probability already."""

            def merge_preds(self, data_samples_list: list) -> list:
                for sample in chain.from_iterable(data_samples_list) if self.module.out_channels == 1 else ():
                    sample.seg_logits.data = sample.seg_logits.data.logit()
                return super().merge_preds(data_samples_list)

        _replace(cfg.model, MODELS, SegTTAModel, OneChannelTTAModel)
    elif cfg.default_scope == 'mmpretrain':
        from mmpretrain.engine import VisualizationHook
        from mmpretrain.registry import HOOKS

        @HOOKS.register_module(force=True)
        class AugmentedVisualizationHook(VisualizationHook):
            """The stock class expects one copy of each picture; the last is painted."""

            def after_test_iter(self, runner: Any, batch_idx: int, data_batch: dict, outputs: Any) -> None:
                super().after_test_iter(runner, batch_idx, dict(data_batch, inputs=data_batch['inputs'][-1]), outputs)

        _replace(cfg.default_hooks.get('visualization'), HOOKS, VisualizationHook, AugmentedVisualizationHook)


def _replace(settings: Any, registry: Any, stock: type, ours: type) -> None:
    if settings and class_of(settings.type, registry, None) is stock:
        settings.type = ours.__name__
