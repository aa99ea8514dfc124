"""Puts layers, backbones, hooks and optimizer constructor into the MM registries.

Nothing here needs more than is installed: without mmengine no registry is touched, and a toolbox that is absent is passed over.
"""

import sys
from importlib import import_module
from importlib.util import find_spec

TOOLBOXES = ('mmdet', 'mmseg', 'mmpretrain')


def register_layers() -> None:
    from mmengine.registry import MODELS

    from .layers import METHODS, conv_builder

    # The root registry is where mmcv's build_conv_layer looks, whatever the scope.
    for layer in METHODS.values():
        MODELS.register_module(name=layer.__name__, module=conv_builder(layer), force=True)


def register_backbones(toolbox: str) -> None:
    """Register the backbones of ``toolbox``, now or when its own models are imported.

    Importing the models of all three toolboxes takes seconds, and most programs use one.
    """
    # mmengine's registries can only be given a place to import from when they are made, so the toolboxes' are told by private fields.
    adapter = f'{__package__}.backbones.{toolbox}_backbones'
    registry = import_module(f'{toolbox}.registry').MODELS
    if registry._imported or f'{toolbox}.models' in sys.modules:
        import_module(adapter)
    else:
        registry._locations.append(adapter)


def find_configs() -> None:
    """Let ``_base_ = 'orepa_mm::...'`` find the configs here, and ``'mmseg::...'`` OneDL's, which is not called mmsegmentation."""
    from mmengine.config.utils import MODULE2PACKAGE
    from mmengine.utils import is_installed

    MODULE2PACKAGE['orepa_mm'] = 'orepa_mm'

    if find_spec('mmseg') is not None and not is_installed('mmsegmentation'):
        MODULE2PACKAGE['mmseg'] = 'mmseg'


def register_all() -> None:
    if find_spec('mmengine') is None:
        return
    register_layers()
    find_configs()
    hooks = (
        'branches_hook',
        'reparameterize_hook',
        'check_hook',
        'finite_loss_hook',
        'checkpoint_hook',
        'seed_hook',
        'prune_branches_hook',
    )
    for part in (*hooks, 'squeeze_graph_hook', 'optim_wrapper_constructor'):
        import_module(f'{__package__}.engine.{part}')
    for toolbox in TOOLBOXES:
        if find_spec(toolbox) is not None:
            register_backbones(toolbox)
