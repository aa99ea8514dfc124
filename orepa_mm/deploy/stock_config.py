"""The config of a re-parameterized network under the stock class names."""

import inspect
from collections.abc import Callable
from typing import Any

from mmengine.config import Config
from mmengine.registry import HOOKS, MODELS, init_default_scope
from mmengine.utils import get_object_from_string

from ..errors import DeployError
from ..layers import METHODS
from ..registry import class_of, drop_own_scope, scope_of, toolbox_of, type_name

LAYERS = tuple(layer.__name__ for layer in METHODS.values())
CHECKPOINT_HOOK = 'AtomicCheckpointHook'  # the only hook of ours that takes a stock one's place
VARIABLES = ('stem_paramwise_cfg', 'safe_hooks')  # of our configs, which their settings were taken from
CONSTRUCTOR = 'OREPAOptimWrapperConstructor'
# How the stock classes that deploy themselves are told to build their deployed form.
DEPLOYED = ('deploy', 'small_kernel_merged')


def stock_config(cfg: Config) -> Config:
    """The config of what :func:`.reparameterize` makes of a config's model; it needs nothing of this package.

    Gone are our layers, hooks, constructor and imports, the weights a training would start from and the folder of the run.

    Raises:
        DeployError: When the config has something that no stock class can do.
    """
    scope = scope_of(cfg)
    init_default_scope(scope)
    result = dict(_stock(cfg.to_dict(), scope), default_scope=scope)
    drop_own_scope(result)
    for key in ('load_from', 'resume', 'work_dir', 'launcher', *VARIABLES):
        result.pop(key, None)
    imports = (result.pop('custom_imports', None) or {}).get('imports') or []
    imports = [name for name in ([imports] if isinstance(imports, str) else imports) if name.split('.')[0] != 'orepa_mm']
    if scope != 'mmpretrain' and _has(result, lambda value: str(value).startswith('mmpretrain.')) and 'mmpretrain.models' not in imports:
        imports.append('mmpretrain.models')  # our own import did that
    if imports:
        result['custom_imports'] = dict(imports=imports, allow_failed_imports=False)
    optim_wrapper = result.get('optim_wrapper') or {}
    if type_name(optim_wrapper.get('constructor')) == CONSTRUCTOR:
        del optim_wrapper['constructor']
        (optim_wrapper.get('optimizer') or {}).pop('fused', None)  # which not every torch has, nor every device
        (optim_wrapper.get('paramwise_cfg') or {}).pop('custom_l2', None)
    if _has(result, lambda value: str(value).startswith('orepa_mm.')):
        raise DeployError('the config names a class of orepa_mm in another place than the model, hooks and optimizer: take it out.')
    return Config(result)


def _has(node: Any, found: Callable[[Any], bool]) -> bool:
    if isinstance(node, dict):
        return any(_has(value, found) for value in node.values())
    return any(_has(value, found) for value in node) if isinstance(node, list | tuple) else found(node)


def _stock(node: Any, scope: str) -> Any:
    if inspect.isclass(node) or inspect.isfunction(node):  # a file has its name
        return f'{node.__module__}.{node.__qualname__}'
    if isinstance(node, list | tuple):
        return type(node)(_stock(item, scope) for item in node if not _is_hook(item))
    if not isinstance(node, dict):
        return node
    node = {key: _stock(value, scope) for key, value in node.items() if not _is_pretrained(key, value) and not _is_hook(value)}
    if isinstance(node.get('conv_cfg'), dict) and type_name(node['conv_cfg'].get('type')) in LAYERS:
        del node['conv_cfg']
    name = type_name(node.get('type'))
    packages = str(node.get('type')).split('.')[:-1]
    if len(packages) > 1 and get_object_from_string(node['type']) is None:  # of a module that a function of its name hides
        node['type'] = f'{packages[0]}.{name}'
    if name == CHECKPOINT_HOOK:
        node['type'] = 'CheckpointHook'
    if name == 'OREPARepVGG':
        if node.get('arch') == 'D2se' or (isinstance(node.get('arch'), dict) and node['arch'].get('se_cfg')):
            raise DeployError(
                "a RepVGG with squeeze and excitation (D2se) has no stock class: in deployed form mmpretrain's leaves these layers out. "
                'Export it to ONNX instead.'
            )
        node = {key: value for key, value in node.items() if key not in ('method', 'branches', 'init', 'start', 'conv_cfg')}
        node.update(type='RepVGG' if scope == 'mmpretrain' else 'mmpretrain.RepVGG', deploy=True)
    elif name.startswith('OREPA') and name not in (*LAYERS, CONSTRUCTOR):
        node = _stock_resnet(node, scope)
    return node


def _is_hook(value: Any) -> bool:
    """Whether a setting is a hook of ours that a stock run does without."""
    if not isinstance(value, dict) or 'type' not in value:
        return False
    name = type_name(value['type'])
    hook = HOOKS.module_dict.get(name)
    return hook is not None and hook.__module__.startswith('orepa_mm.') and name != CHECKPOINT_HOOK


def _is_pretrained(key: str, value: Any) -> bool:
    """Whether a setting says which weights a training starts from."""
    if key == 'init_cfg' and isinstance(value, dict):
        return 'checkpoint' in value
    return key == 'pretrained' and isinstance(value, str)


def _stock_resnet(node: dict[str, Any], scope: str) -> dict[str, Any]:
    stock = next(c for c in class_of(node['type'], MODELS, scope).__mro__ if c.__module__.partition('.')[0] != 'orepa_mm')
    if 'groups' not in node and 'ResNeXt' in stock.__name__:
        node['groups'] = 32  # the default of some of the stock classes is another one
    node = {key: value for key, value in node.items() if key not in ('method', 'branches', 'init', 'start', 'plain_stem')}
    toolbox = toolbox_of(stock)
    return dict(node, type=stock.__name__ if toolbox == scope else f'{toolbox}.{stock.__name__}')


def deploy_stock_blocks(cfg: Config) -> Config:
    """``cfg`` with every part of the model that can be built in its deployed form built so (RepVGG, MobileOne, RepLKNet, ...)."""
    scope = scope_of(cfg)

    def deployed(node: Any) -> Any:
        if isinstance(node, list | tuple):
            return type(node)(deployed(item) for item in node)
        if not isinstance(node, dict):
            return node
        node = {key: deployed(value) for key, value in node.items()}
        if 'type' in node:
            kind = class_of(node['type'], MODELS, scope)
            parameters = inspect.signature(kind).parameters if kind is not None else ()
            node |= {key: True for key in DEPLOYED if key in parameters}
        return node

    return Config(dict(cfg.to_dict(), model=deployed(cfg.model.to_dict())))
