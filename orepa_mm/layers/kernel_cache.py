"""Reusing a squeezed kernel for as long as nothing can have changed the parameters it came from."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

_optimizer_steps = 0


def _count_step(*_) -> None:
    global _optimizer_steps
    _optimizer_steps += 1


# Fused optimizers write to parameters without counting in their version.
register_optimizer_step_post_hook(_count_step)


def _storage_users(tensor: Tensor) -> int:
    """Number of tensors that share ``tensor``'s memory, itself included, plus a constant."""
    return torch._C._storage_Use_Count(torch.Tensor.untyped_storage(tensor)._cdata)


_ONE_USER = _storage_users(torch.empty(1))


class _WatchedParameter(nn.Parameter):
    """A parameter whose kernel is cached.

    In-place operations on a parameter, and on what ``detach()`` gives, count in its ``_version``. These are the other ways to its memory;
    whoever takes one gets an ordinary parameter back, which ends the caching. Parameters have this class only while their kernel is
    cached, as optimizers look for the exact class ``nn.Parameter``.
    """

    @property
    def data(self) -> Tensor:
        return _unwatched(self).data

    @data.setter
    def data(self, value: Tensor) -> None:
        _unwatched(self).data = value

    def detach(self) -> Tensor:
        return _unwatched(self).detach()  # of which numpy() writes uncounted

    def numpy(self, *args, **kwargs):
        return _unwatched(self).numpy(*args, **kwargs)

    def untyped_storage(self):
        return _unwatched(self).untyped_storage()

    def __array__(self, *args, **kwargs):
        return _unwatched(self).__array__(*args, **kwargs)

    def __dlpack__(self, *args, **kwargs):
        return _unwatched(self).__dlpack__(*args, **kwargs)

    def __deepcopy__(self, memo):
        return _unwatched(self).__deepcopy__(memo)

    def __reduce_ex__(self, protocol):
        return _unwatched(self).__reduce_ex__(protocol)


def _unwatched(parameter: nn.Parameter) -> nn.Parameter:
    parameter.__class__ = nn.Parameter
    return parameter


class KernelCache:
    """The squeezed kernel of one layer.

    It is handed out only while no optimizer has made a step and every parameter is the same object with the same version, has been
    reached in no way that does not count in the version, and shares its memory with no other tensor, such as a kept
    ``parameter.data``. Whenever that cannot be told, the kernel is squeezed anew.
    """

    def __init__(self) -> None:
        self._kernel: Tensor | None = None
        self._key: object = None
        self._steps = 0
        self._seen: list[tuple[dict, str, nn.Parameter, int]] = []

    def get(self, module: nn.Module, key: object, squeeze: Callable[[], Tensor]) -> Tensor:
        """The kernel that ``squeeze`` gives.

        Args:
            module: Holds the parameters that ``squeeze`` reads.
            key: What the kernel depends on besides.
            squeeze: Called without gradients.
        """
        if self._kernel is None or key != self._key or not self._is_current():
            self.clear()
            # Not as an inference tensor, which later calls outside inference mode could not use.
            with torch.inference_mode(False), torch.no_grad():
                kernel = squeeze()
            self._fill(module, key, kernel)
            return kernel
        return self._kernel

    def clear(self) -> None:
        for _, _, parameter, _ in self._seen:
            if type(parameter) is _WatchedParameter:
                _unwatched(parameter)
        self._kernel, self._key, self._seen = None, None, []

    def _is_current(self) -> bool:
        return self._steps == _optimizer_steps and all(
            owner.get(name) is parameter
            and type(parameter) is _WatchedParameter
            and parameter._version == version
            and _storage_users(parameter) == _ONE_USER
            for owner, name, parameter, version in self._seen
        )

    def _fill(self, module: nn.Module, key: object, kernel: Tensor) -> None:
        owned = [(m._parameters, name, p) for m in module.modules() for name, p in m._parameters.items() if p is not None]
        for *_, parameter in owned:
            known = type(parameter) in (nn.Parameter, _WatchedParameter)
            if not known or parameter.is_inference() or _storage_users(parameter) != _ONE_USER:
                return
        for owner, name, parameter in owned:
            parameter.__class__ = _WatchedParameter
            self._seen.append((owner, name, parameter, parameter._version))
        self._kernel, self._key, self._steps = kernel, key, _optimizer_steps

    def __deepcopy__(self, memo) -> 'KernelCache':
        return KernelCache()

    def __reduce__(self):
        return KernelCache, ()
