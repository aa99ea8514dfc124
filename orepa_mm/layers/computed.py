"""A weight or bias that a layer computes from its branches: what is written into it reaches the layer."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..functional import is_plain_eager


def computed(value: Tensor, write: Callable[[Tensor], None]) -> Tensor:
    """``value`` such that ``write`` is called with all of it after somebody has written into it or a view of it, ``.data`` too."""
    if not is_plain_eager(value) or value.is_inference():
        return value
    return _Computed.of(value, value, write)


class _Computed(Tensor):
    whole: Tensor
    write: Callable[[Tensor], None]

    @classmethod
    def of(cls, value: Any, whole: Tensor, write: Callable[[Tensor], None]) -> Any:
        """``value``, and where it holds tensors that share memory with ``whole`` those in this class."""
        if type(value) in (tuple, list):
            return type(value)(cls.of(item, whole, write) for item in value)
        if type(value) is not Tensor or value.layout is not torch.strided or not _share_memory(value, whole):
            return value
        value = value.as_subclass(cls)
        value.whole, value.write = whole, write
        return value

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [*args, *(kwargs or {}).values()]
        mine = [v for each in given for v in (each if isinstance(each, list | tuple) else (each,)) if isinstance(v, cls)]
        with torch._C.DisableTorchFunctionSubclass():
            before = [(value._version, value.data_ptr()) for value in mine]
            result = func(*args, **(kwargs or {}))
            for value, state in zip(mine, before, strict=True):
                if (value._version, value.data_ptr()) != state:
                    value.write((value.whole if _share_memory(value, value.whole) else value).detach())
                result = cls.of(result, value.whole, value.write)
        return result

    def __deepcopy__(self, memo: Any) -> Tensor:
        return self.detach().clone()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.detach().clone().__reduce_ex__(protocol)


def _share_memory(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
