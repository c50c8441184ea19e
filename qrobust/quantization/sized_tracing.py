"""Tracing with shapes: what Python does with them is done while tracing, but for what depends on the batch.

The graph is computed on fake tensors, which have shapes and no numbers, for one image and for four. A number that is
the same in both is a number for Python: sizes of images, windows, channels, and what branches and arithmetic make of
them. A number that differs depends on the batch and stays in the graph.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

# Of the fake images. Unlike in whether there are several, and in whether their number is odd.
BATCHES = (1, 4)
NUMBERS = (bool, int, float)
# Functions, and methods of a tensor, that take sizes one by one.
SIZED = ("zeros", "ones", "empty", "rand", "randn")
RESIZING = ("expand", "repeat", "view", "reshape", "new_zeros", "new_ones", "new_empty")
# Functions of torchvision that ask for a tensor before they compute, and are given none while tracing.
NORMALIZING = ("torchvision.transforms.functional", "torchvision.transforms.v2.functional")


class SizedTracer(fx.Tracer):
    """A tracer whose proxies know their shape.

    Args:
        leaves: module classes that stay as they are.
        example: one input `(1, C, S, S)`, to learn shapes from; without one this is a plain tracer.
    """

    def __init__(self, leaves: tuple[type[nn.Module], ...], example: torch.Tensor | None = None) -> None:
        super().__init__()
        self.leaves = leaves
        self._runs = [] if example is None else [_FakeRun(example, count) for count in BATCHES]
        self._computing = False

    def trace(self, root: Any, concrete_args: Any = None) -> fx.Graph:
        with ExitStack() as stack:
            stack.enter_context(sizes_may_be_nodes())
            for module in filter(None, map(sys.modules.get, NORMALIZING)):
                stack.enter_context(_normalizing_proxies(module))
            return super().trace(root, concrete_args)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, self.leaves) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
        if self._computing:
            return forward(*args, **kwargs)
        if _is_normalize(m) and isinstance(args[0], fx.Proxy):
            return _normalized(args[0], m.mean, m.std)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        return attr_val if self._computing else super().getattr(attr, attr_val, parameter_proxy_cache)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return SizedProxy(node, self)

    def to_bool(self, obj: fx.Proxy) -> bool:
        number = self.number(obj.node)
        return super().to_bool(obj) if number is None else bool(number)

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        lengths = {len(found) for found in self.computed(obj.node) if isinstance(found, tuple | list)}
        lengths |= {
            found.shape[0] for found in self.computed(obj.node) if isinstance(found, torch.Tensor) and found.ndim
        }
        if len(lengths) != 1:
            return super().iter(obj)
        return (obj[i] for i in range(*lengths))  # type: ignore[index]  # `Proxy` defines it while it runs

    def computed(self, node: fx.Node) -> list[Any]:
        """What a node is for each number of images; nothing where that cannot be told."""
        self._computing = True
        try:
            found = [run.value(self.root, node) for run in self._runs]
        finally:
            self._computing = False
        return [] if any(isinstance(value, _Unknown) for value in found) else found

    def number(self, node: fx.Node) -> bool | int | float | None:
        """A node's value, if it is a number that does not depend on the batch."""
        found = self.computed(node)
        same = bool(found) and all(isinstance(value, NUMBERS) and value == found[0] for value in found)
        return found[0] if same else None

    def shape(self, proxy: fx.Proxy) -> Size | None:
        """Of a tensor: numbers, and nodes for what depends on the batch; None where it is not known."""
        shapes = [value.shape for value in self.computed(proxy.node) if isinstance(value, torch.Tensor)]
        if not shapes or len({len(shape) for shape in shapes}) > 1:
            return None
        return Size(
            sizes[0] if len(set(sizes)) == 1 else self.create_proxy("call_method", "size", (proxy, axis), {})
            for axis, sizes in enumerate(zip(*shapes, strict=True))
        )


class Size(tuple[Any, ...]):
    """A shape, some entries of which may be nodes."""

    def numel(self) -> Any:
        """How many elements that are."""
        product: Any = 1
        for size in self:
            product = product * size
        return product


class SizedProxy(fx.Proxy):
    """A value while tracing, which gives numbers for what does not depend on the batch."""

    tracer: SizedTracer

    @property
    def shape(self) -> Any:
        """Sizes of a tensor."""
        found = self.tracer.shape(self)
        return _Attribute(self, "shape") if found is None else found

    @property
    def ndim(self) -> Any:
        """Axes of a tensor."""
        found = self.tracer.shape(self)
        return _Attribute(self, "ndim") if found is None else len(found)

    def dim(self) -> Any:
        """Axes of a tensor."""
        found = self.tracer.shape(self)
        return self._method("dim") if found is None else len(found)

    def size(self, dim: int | None = None) -> Any:
        """Sizes of a tensor, or one of them."""
        found = self.tracer.shape(self)
        if found is None:
            return self._method("size", *(() if dim is None else (dim,)))
        return found if dim is None else found[dim]

    def numel(self) -> Any:
        """Elements of a tensor."""
        found = self.tracer.shape(self)
        return self._method("numel") if found is None else found.numel()

    def __len__(self) -> int:
        found = self.tracer.computed(self.node)
        lengths = {len(value) for value in found if isinstance(value, tuple | list | torch.Tensor)}
        return lengths.pop() if len(lengths) == 1 else super().__len__()

    def __setitem__(self, index: Any, value: Any) -> None:
        # Whoever reads this value from now on reads the changed one; a second name of it, such as a view, does not.
        self.node = assigned(self, index, value).node

    def __int__(self) -> int:
        return int(self._number("int"))

    def __float__(self) -> float:
        return float(self._number("float"))

    def __index__(self) -> int:
        return int(self._number("an index"))

    @property
    def dtype(self) -> Any:
        """Of a tensor."""
        found = {value.dtype for value in self.tracer.computed(self.node) if isinstance(value, torch.Tensor)}
        return found.pop() if len(found) == 1 else _Attribute(self, "dtype")

    @property
    def device(self) -> Any:
        """Of a tensor: a node, since a graph may move, whose type is that of the device on which graphs are made."""
        return _Device(self, "device")

    def __getattr__(self, k: str) -> Any:
        return _Attribute(self, k)

    def _number(self, kind: str) -> float:
        found = self.tracer.number(self.node)
        if found is None:
            raise TypeError(f"{kind} of what depends on the pixels or on how many images there are")
        return found

    def _method(self, name: str, *args: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_method", name, (self, *args), {})


class _Attribute(fx.proxy.Attribute, SizedProxy):
    """An attribute of a value, or one of its methods."""


class _Device(_Attribute):
    type = "cpu"


def assigned(tensor: Any, index: Any, value: Any) -> Any:
    """A tensor of which a part has another value; one node, whichever tracer meets it."""
    if isinstance(tensor, fx.Proxy):
        return tensor.tracer.create_proxy("call_function", assigned, (tensor, index, value), {})
    found = tensor.clone()
    found[index] = value
    return found


class _Unknown:
    """A value that fake tensors cannot tell."""


class _FakeRun:
    """The nodes of a graph that is being made, computed in their order on so many fake images."""

    def __init__(self, example: torch.Tensor, count: int) -> None:
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        with self._mode:
            self._images = torch.empty((count, *example.shape[1:]), dtype=example.dtype)
        self._values: dict[fx.Node, Any] = {}
        self._last: fx.Node | None = None

    @torch.no_grad()
    def value(self, root: nn.Module, node: fx.Node) -> Any:
        """What a node is, after all before it that have not been computed yet."""
        following = next(iter(node.graph.nodes)) if self._last is None else self._last.next
        while node not in self._values and following.op != "root":
            self._values[following] = self._computed(root, following)
            self._last, following = following, following.next
        return self._values[node]

    def _computed(self, root: nn.Module, node: fx.Node) -> Any:
        if any(isinstance(self._values[n], _Unknown) for n in node.all_input_nodes):
            return _Unknown()
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self._values.__getitem__)
        try:
            with self._mode:
                if node.op == "placeholder":
                    return args[0] if args else self._images
                if node.op == "call_method":
                    return getattr(args[0], str(node.target))(*args[1:], **kwargs)
                if node.op == "call_function":
                    return node.target(*args, **kwargs)  # type: ignore[operator]  # a function here
                found = _attribute(root, str(node.target))
                return found(*args, **kwargs) if node.op == "call_module" else found
        except Exception:  # whatever an operator does with tensors that have no numbers
            return _Unknown()


def _attribute(root: nn.Module, path: str) -> Any:
    found: Any = root
    for name in path.split("."):
        found = getattr(found, name)
    return found


@contextmanager
def _replaced(module: ModuleType | type, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Within this, a module's function is another one."""
    original = getattr(module, name)
    setattr(module, name, function)
    try:
        yield
    finally:
        setattr(module, name, original)


@contextmanager
def sizes_may_be_nodes() -> Iterator[None]:
    """Within this, stored tensors and functions of torch take sizes that depend on the batch, one by one."""
    with ExitStack() as stack:
        for name in SIZED:
            stack.enter_context(_replaced(torch, name, _taking_nodes(getattr(torch, name))))
        for name in RESIZING:
            stack.enter_context(_replaced(torch.Tensor, name, _reading_nodes(name, getattr(torch.Tensor, name))))
        yield


def _taking_nodes(make: Callable[..., Any]) -> Callable[..., Any]:
    """`torch.zeros(batch, 3)` refuses sizes that are nodes, `torch.zeros((batch, 3))` takes them."""

    def made(*args: Any, **options: Any) -> Any:
        one_by_one = len(args) > 1 and any(isinstance(size, fx.Proxy) for size in args)
        return make(args, **options) if one_by_one else make(*args, **options)

    return made


def _reading_nodes(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """`stored.expand(batch, 3)` becomes a node where a size is one."""

    def read(tensor: torch.Tensor, *args: Any, **options: Any) -> Any:
        nodes = [size for size in args if isinstance(size, fx.Proxy)]
        if nodes:
            return nodes[0].tracer.create_proxy("call_method", name, (tensor, *args), options)
        return method(tensor, *args, **options)

    return read


def _is_normalize(module: nn.Module) -> bool:
    """`torchvision.transforms.Normalize` of either version, as a part of a network."""
    return type(module).__name__ == "Normalize" and type(module).__module__.startswith("torchvision.transforms")


def _normalized(images: Any, mean: Any, std: Any) -> Any:
    mean, std = (torch.tensor(numbers, dtype=torch.float32).view(-1, 1, 1) for numbers in (mean, std))
    return (images - mean) / std


def _normalizing_proxies(module: ModuleType) -> Any:
    original = module.normalize

    def normalize(image: Any, mean: Any, std: Any, inplace: bool = False) -> Any:
        if isinstance(image, fx.Proxy):
            return _normalized(image, mean, std)
        return original(image, mean, std, inplace)

    return _replaced(module, "normalize", normalize)
