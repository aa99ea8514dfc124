"""Puts layers, backbones, hooks and optimizer constructor into the MM registries.

Nothing here needs more than is installed: without mmengine no registry is touched, and a toolbox that is absent is passed over. One that
is there and cannot be imported, as without its mmcv, is passed over with a warning, and so are the hooks where mmengine's cannot be.
"""

import logging
import sys
import warnings
from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from pkgutil import iter_modules
from typing import Any

TOOLBOXES = ('mmdet', 'mmseg', 'mmpretrain')


def type_name(kind: Any) -> str:
    """The bare name of a type as configs have it: a name, one with a scope or modules before it, or a class; '' for None."""
    return '' if kind is None else getattr(kind, '__name__', str(kind)).rpartition('.')[2]


def scope_of(cfg: Any) -> str:
    """The toolbox of a config: its ``default_scope``, or where the class of its model is from; '' where neither says so."""
    from mmengine.utils import get_object_from_string

    scope, kind = cfg.get('default_scope'), (cfg.get('model') or {}).get('type')
    if scope and scope != 'mmengine':
        return scope
    return toolbox_of(get_object_from_string(kind) if isinstance(kind, str) else kind)


def toolbox_of(kind: Any, known: Iterable[str] = ()) -> str:
    """The toolbox, one of ``known`` where these are given, that a class is of or built on; '' for none."""
    from mmengine.registry import MODELS

    packages = [each.__module__.partition('.')[0] for each in getattr(kind, '__mro__', ())]
    return next((name for name in packages if name in (known or MODELS.children)), '')


def class_of(kind: Any, registry: Any, scope: str | None) -> Any:
    """What a type of a config is, in a registry of mmengine; a name may be of the scope, or have its own before it."""
    with registry.switch_scope_and_registry(scope or None) as inner:
        return inner.get(kind) if isinstance(kind, str) else kind


def drop_own_scope(node: Any) -> None:
    """Take out the scope that mmengine gives what is read from ``orepa_mm::...``; the toolboxes' registries have all of it."""
    if isinstance(node, dict):
        if node.get('_scope_') == __package__:
            del node['_scope_']
        node = list(node.values())
    for value in node if isinstance(node, list | tuple) else ():
        drop_own_scope(value)


def register_layers() -> None:
    from mmengine.registry import MODELS

    from .layers import METHODS

    # The root registry is where mmcv's build_conv_layer looks, whatever the scope.
    for layer in METHODS.values():
        MODELS.register_module(name=layer.__name__, module=layer, force=True)


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


class RunLog(logging.Handler):
    """Puts what this package logs into the log of the run, as mmengine's own lines."""

    def emit(self, record: logging.LogRecord) -> None:
        from mmengine.logging import print_log

        print_log(record.getMessage(), 'current', record.levelno)


def can_import(module: str) -> bool:
    """Whether a package that is installed can be imported; a warning says why not."""
    if find_spec(module.partition('.')[0]) is None:
        return False
    try:
        import_module(module)
    except Exception as error:  # the toolboxes assert the version of mmcv, and torchvision's raises what it likes
        warnings.warn(f'orepa_mm passes over {module}, which cannot be imported: {type(error).__name__}: {error}', stacklevel=2)
        return False
    return True


def register_all() -> None:
    if find_spec('mmengine') is None:
        return
    logging.getLogger(__package__).addHandler(RunLog())
    register_layers()
    find_configs()
    if can_import('mmengine.runner'):  # which needs cv2
        for part in iter_modules(import_module(f'{__package__}.engine').__path__):
            import_module(f'{__package__}.engine.{part.name}')
    for toolbox in TOOLBOXES:
        if can_import(f'{toolbox}.registry'):
            register_backbones(toolbox)
