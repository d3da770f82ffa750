"""An emulated Apple GPU: tensors that report the device mps:0, compute on the CPU, and have no float64.

On a real Mac, PyTorch raises for float64 on the GPU, and for operations between GPU and CPU; so does this.
"""

import contextlib
import platform
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from lightning.fabric.accelerators.mps import MPSAccelerator
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

MPS = torch.device("mps", 0)
COPIES = {
    torch.ops.aten._to_copy.default,
    torch.ops.aten.copy_.default,
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put_.default,
    torch.ops.aten._index_put_impl_.default,
}
"""Operations that PyTorch allows between the CPU and a GPU."""


class GPUTensor(Tensor):
    """A tensor on the emulated GPU; `inner` holds its numbers on the CPU."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "GPUTensor":
        if inner.dtype in (torch.float64, torch.complex128):
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support it"
            )
        size, stride, offset = inner.size(), inner.stride(), inner.storage_offset()
        # PyTorch's own code sees the device "meta", for which autograd needs no driver.
        wrapper = Tensor._make_wrapper_subclass(
            cls, size, stride, offset, dtype=inner.dtype, layout=inner.layout, device=torch.device("meta")
        )
        wrapper.inner = inner
        return wrapper

    def __init__(self, inner: Tensor) -> None:
        super().__init__()

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return MPS

    @property
    def is_meta(self) -> bool:  # type: ignore[override]
        return False

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"GPUTensor({self.inner})"

    def tolist(self) -> Any:
        return self.inner.tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError("can't convert mps:0 device type tensor to numpy: use Tensor.cpu() first")

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.inner.__reduce_ex__(protocol)  # a checkpoint holds the numbers

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(func, args, kwargs or {})


def dispatch(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run one operation on the CPU; its result is on the GPU if its operands or its `device` are."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    on_gpu = [t for t in tensors if isinstance(t, GPUTensor)]
    strangers = [t for t in tensors if not isinstance(t, GPUTensor) and t.dim() > 0]
    if on_gpu and strangers and func not in COPIES:
        raise RuntimeError(f"Expected all tensors to be on the same device, but {func} got mps:0 and cpu")
    device = kwargs.get("device")
    to_gpu = bool(on_gpu) if device is None else torch.device(device).type in ("mps", "meta")
    if func is torch.ops.aten.copy_.default:
        to_gpu = isinstance(args[0], GPUTensor)
    if device is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    wrappers = {id(t.inner): t for t in on_gpu}
    unwrap = lambda leaf: leaf.inner if isinstance(leaf, GPUTensor) else leaf  # noqa: E731
    out = func(*tree_map(unwrap, args), **tree_map(unwrap, kwargs))

    def wrap(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not to_gpu:
            return leaf
        return wrappers[id(leaf)] if id(leaf) in wrappers else GPUTensor(leaf)

    return tree_map(wrap, out)


class EmulatedGPU(TorchDispatchMode):
    """Catches operations that create tensors on the GPU or move them to it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(func, args, kwargs or {})


@contextlib.contextmanager
def apple_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Emulate a Mac with an Apple GPU within the block."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(platform, "processor", lambda: "arm")
    MPSAccelerator.is_available.cache_clear()
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(x, device=...) then passes through the mode
    try:
        with EmulatedGPU():
            yield
    finally:
        torch._C._set_only_lift_cpu_tensors(False)
        MPSAccelerator.is_available.cache_clear()
