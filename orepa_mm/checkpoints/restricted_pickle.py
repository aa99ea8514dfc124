"""What a checkpoint may hold beside weights; and unpickling for torch before 2.6, whose ``weights_only=True`` cannot be told of it.

For that this module is the ``pickle_module`` of ``torch.load``. It is as strict: the instructions that torch knows and no others; calls,
instances and attributes of what is listed alone.
"""

import importlib
import pickle
from collections import Counter, OrderedDict
from collections.abc import Callable
from functools import cache
from typing import Any, BinaryIO

import numpy as np
import torch

NAMES = {
    'builtins': ('complex', 'set'),
    '_codecs': ('encode',),
    'collections': ('Counter', 'OrderedDict'),
    'torch': ('Size', 'device'),
    'torch.nn.parameter': ('Parameter',),
    'torch._utils': ('_rebuild_meta_tensor_no_storage', '_rebuild_parameter', '_rebuild_tensor', '_rebuild_tensor_v2'),
}


def _method_of_log_history(owner: type, name: str) -> Any:
    """What pickle's ``getattr`` is replaced with: a method of mmengine's log history and nothing else."""
    from mmengine.logging import HistoryBuffer

    if owner is not HistoryBuffer or name not in ('mean', 'min', 'max', 'current', 'data'):
        raise pickle.UnpicklingError(f'GLOBAL getattr({owner}, {name}) was not allowed')
    return getattr(owner, name)


class _Number:
    """A dtype of numpy for numbers, to which a file gives its byte order alone: flags and fields would make addresses of numbers."""

    def __init__(self, code: str, *copied: bool) -> None:
        self.dtype = np.dtype(code)
        if not isinstance(code, str) or self.dtype.kind not in 'biufc':
            raise pickle.UnpicklingError(f'GLOBAL numpy.dtype({code}) was not allowed')

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[2:] != (None, None, None, -1, -1, 0):
            raise pickle.UnpicklingError(f'GLOBAL numpy.dtype.__setstate__{state} was not allowed')
        self.dtype = self.dtype.newbyteorder(state[1])

    def __reduce__(self) -> Any:
        return self.dtype.__reduce__()


class _Numbers(np.ndarray):  # type: ignore[type-arg]
    """An array as it comes from a file, empty until it has its state; it goes into one as any other."""

    def __new__(cls, *unused: Any) -> '_Numbers':
        return super().__new__(cls, 0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        version, shape, number, *values = state
        super().__setstate__((version, shape, number.dtype, *values))

    def __reduce__(self) -> Any:
        return self.view(np.ndarray).__reduce__()


def _scalar(number: _Number, value: bytes) -> Any:
    return np.frombuffer(value, number.dtype)[0]


@cache
def harmless() -> dict[str, Any]:
    """What stands for the classes and functions, by their names in a file, with which mmengine's checkpoints keep their log history."""
    from mmengine.logging import HistoryBuffer

    # numpy 1 and 2 write the same functions under different names.
    named = {f'numpy.{core}.multiarray.{name}': each for core in ('core', '_core')
             for name, each in dict(_reconstruct=_Numbers, scalar=_scalar).items()}  # fmt: skip
    named |= {'numpy.ndarray': _Numbers, 'numpy.dtype': _Number, 'builtins.getattr': _method_of_log_history}
    return named | {f'{HistoryBuffer.__module__}.{HistoryBuffer.__qualname__}': HistoryBuffer}


@cache
def _known() -> dict[str, Any]:
    named = {f'{module}.{name}': getattr(importlib.import_module(module), name) for module, names in NAMES.items() for name in names}
    return named | harmless()


def _is_known(value: Any) -> bool:
    return any(value is each for each in _known().values())


PLAIN = b'()].}NGJKMUXchjqrt\x80\x85\x86\x87\x88\x89\x8a\x8f'  # instructions that call and change nothing
BELOW_MARK = 0
# Where on the stack what other instructions work on is, and whether they may.
CHECKED: dict[bytes, tuple[int, Callable[[Any], bool]]] = {
    pickle.APPEND: (-2, lambda each: type(each) is list),
    pickle.APPENDS: (BELOW_MARK, lambda each: type(each) is list),
    pickle.SETITEM: (-3, lambda each: type(each) in (dict, OrderedDict, Counter)),
    pickle.SETITEMS: (BELOW_MARK, lambda each: type(each) in (dict, OrderedDict, Counter)),
    pickle.BINPERSID: (-1, lambda each: type(each) is tuple and each[:1] == ('storage',)),
    pickle.NEWOBJ: (-2, _is_known),
    pickle.REDUCE: (-2, _is_known),
    pickle.BUILD: (-2, lambda each: _is_known(type(each))),
}


def _checked(code: int) -> Callable[[Any], None]:
    place, fits = CHECKED.get(bytes([code]), (BELOW_MARK, None))
    run: Any = pickle._Unpickler.dispatch[code]

    def refuse(unpickler: Any) -> None:
        raise pickle.UnpicklingError(f'instruction {code} was not allowed')

    def check(unpickler: Any) -> None:
        target = unpickler.stack[place] if place else unpickler.metastack[-1][-1]
        if fits is not None and not fits(target):
            raise pickle.UnpicklingError(f'instruction {code} on {target if isinstance(target, type) else type(target)} was not allowed')
        run(unpickler)

    return run if code in PLAIN else check if fits else refuse


class Unpickler(pickle._Unpickler):  # the one in C shows nobody its instructions
    dispatch = {code: _checked(code) for code in pickle._Unpickler.dispatch}

    def find_class(self, module: str, name: str) -> Any:
        path = f'{"builtins" if module == "__builtin__" else module}.{name}'
        found = _known().get(path) or (getattr(torch, name, None) if module == 'torch' else None)
        if path not in _known() and not isinstance(found, torch.dtype):
            raise pickle.UnpicklingError(f'GLOBAL {path} was not allowed')
        return found


def load(file: BinaryIO, **options: Any) -> Any:
    return Unpickler(file, **options).load()
