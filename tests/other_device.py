"""A device that is not there: tensors that say they are elsewhere and hold their values on the CPU.

Every operator computes what it computes on the CPU, and refuses, as an accelerator does, a tensor of the CPU beside
one of its own. So code that follows its modules to a device can be run to the end, and its numbers compared.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from qrobust.device import Device

# The one kind of device that every build of torch knows beside the CPU.
PLACE = torch.device("meta")
OTHER = Device(PLACE, "another device")
# What takes tensors of two devices: copies, and indices of the CPU.
MIXED = {"aten::copy_", "aten::index", "aten::index_put_", "aten::_index_put_impl_", "aten::_to_copy"}


class Elsewhere(torch.Tensor):
    """A tensor of the other device."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Elsewhere:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=PLACE,
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class OtherDevice(TorchDispatchMode):
    """While it is on, `PLACE` computes."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, Elsewhere)]
    here = [tensor for tensor in tensors if not isinstance(tensor, Elsewhere) and tensor.ndim]
    if there and here and func._schema.name not in MIXED:
        raise RuntimeError(f"{func}: expected all tensors on one device, got {here[0].shape} on the CPU")
    if there and any(tensor.dtype == torch.float64 for tensor in tensors):
        raise RuntimeError(f"{func}: this device has no float64")
    device = kwargs.get("device")
    result_there = bool(there) if device is None else torch.device(device) == PLACE
    if device is not None:
        kwargs = {**kwargs, "device": "cpu"}
    args_here, kwargs_here = tree_map(lambda v: v.inner if isinstance(v, Elsewhere) else v, (args, kwargs))
    found = func(*args_here, **kwargs_here)
    if func._schema.name.endswith("_"):  # in place: the tensor that was given
        return args[0]
    return tree_map(lambda v: Elsewhere(v) if isinstance(v, torch.Tensor) and result_there else v, found)
