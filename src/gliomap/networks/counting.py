"""What a network costs, counted on the meta device: nothing is computed and nothing is stored, however large the images.

A multiply-accumulate (MAC) is one multiplication and one addition, of convolutions, linear layers and matrix products,
those of attention included; biases, normalisations and activations are not counted. Memory is that of the tensors which
an operation returns, from when it returns them until the last reference to them is gone, so activations that are kept for
the backward pass count until they are used, and recomputed ones do not. What a kernel takes for itself is not seen.
"""

import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from torch.utils.hooks import RemovableHandle

from gliomap.networks.base import Network, Outputs

_ATEN = torch.ops.aten
_FUSED = _ATEN._scaled_dot_product_flash_attention_for_cpu
_OPERATIONS: dict[Any, Callable[..., int]] = flop_registry | {
    _FUSED: flop_registry[_ATEN._scaled_dot_product_flash_attention],
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        _ATEN._scaled_dot_product_flash_attention_backward
    ],
}
"""What each operation costs, two per MAC: torch's own formulas, which lack the attention that CPUs run."""

_LISTS = (nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class Layer:
    """One call of a part of the network; ``output`` is (C, *S), empty for a row that stands for several parts."""

    name: str
    kind: str
    output: tuple[int, ...]
    parameters: int
    gmac: float


@dataclass(frozen=True)
class Forward:
    """One patch through the network, without gradients: 10^9 MAC, the largest memory beyond the weights, and the layers."""

    gmac: float
    memory_bytes: int
    layers: tuple[Layer, ...]


@dataclass(frozen=True)
class Step:
    """Forward and backward pass of one batch: 10^9 MAC, and the largest memory beyond weights and their gradients."""

    gmac: float
    memory_bytes: int


def parameters(module: nn.Module) -> int:
    """How many numbers a module learns: what is frozen is not counted."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def count_forward(network: Network, size: tuple[int, ...]) -> Forward:
    """Count one patch of S voxels through a network on the meta device.

    Layers are listed in the order in which they run, once for each time; together they have all parameters and MAC.
    """
    network.eval()
    with torch.no_grad(), _Tally(network) as tally, _FusedAttention(), _Rows(network, tally) as rows:
        network(_images(network, 1, size))
    return Forward(tally.macs / 1e9, tally.peak_bytes, rows.layers())


def count_step(network: Network, size: tuple[int, ...], batch: int, loss: Callable[[Outputs], Tensor]) -> Step:
    """Count a training step of a network on the meta device with a batch of patches of S voxels.

    What is frozen gets no gradient; a network with nothing to train only runs forward. The network is left with gradients.
    """
    network.train()
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    with _Tally(network) as tally, _FusedAttention():
        total = loss(network.supervised(_images(network, batch, size)))
        if total.requires_grad:
            total.backward()
    return Step(tally.macs / 1e9, tally.peak_bytes)


def mean_logit(outputs: Outputs) -> Tensor:
    """A loss that costs next to nothing and reaches everything that a network gives to training."""
    given = (*outputs.logits, outputs.attention_logits, outputs.prototypes)
    return torch.stack([tensor.mean() for tensor in given if tensor is not None]).sum()


def layers(network: Network) -> dict[str, nn.Module]:
    """The parts of a network by name: its children; of lists, and of what is nothing but a list, their items.

    Of a network with a single part, such as one that wraps another library's, the parts of that.
    """
    found = _parts(network, "")
    while len(found) == 1:
        ((name, part),) = found.items()
        inner = _parts(part, f"{name}.")
        if not inner:
            break
        found = inner
    return found


def _parts(module: nn.Module, prefix: str) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {}
    for name, child in module.named_children():
        inner = list(child.children())
        a_list = isinstance(child, _LISTS) or (len(inner) == 1 and isinstance(inner[0], _LISTS))
        if not isinstance(child, nn.Identity):
            found |= _parts(child, f"{prefix}{name}.") if a_list else {f"{prefix}{name}": child}
    return found


def _images(network: Network, batch: int, size: tuple[int, ...]) -> Tensor:
    return torch.zeros(batch, network.in_channels, *size, device="meta")


class _Tally(TorchDispatchMode):
    """Counts MAC and the bytes of living tensors of everything that runs inside, but for what the network itself keeps."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        own = [*network.parameters(), *network.buffers()]
        own += [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        self._own = [tensor.untyped_storage() for tensor in own]
        self._known = {id(storage) for storage in self._own}
        self._live_bytes = 0
        self.peak_bytes = 0
        self.macs = 0

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in _OPERATIONS:
            self.macs += _OPERATIONS[func.overloadpacket](*args, **(kwargs or {}), out_val=out) // 2
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._follow(tensor.untyped_storage())
        return out

    def _follow(self, storage: torch.UntypedStorage) -> None:
        """Storages and not tensors live and die: views share one."""
        if id(storage) in self._known:
            return
        self._known.add(id(storage))
        self._live_bytes += storage.nbytes()
        self.peak_bytes = max(self.peak_bytes, self._live_bytes)
        weakref.finalize(storage, self._forget, id(storage), storage.nbytes())

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._live_bytes -= size


class _FusedAttention(TorchFunctionMode):
    """Attention as the kernels of CPUs and GPUs compute it; on the meta device torch would write out every score."""

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention and len(args) == 3 and args[0].ndim == 4 and not kwargs:
            return _FUSED(*args)[0]
        return func(*args, **(kwargs or {}))


@dataclass
class _Row:
    name: str
    kind: str
    output: tuple[int, ...] = ()
    parameters: int = 0
    macs: int = 0
    holds_others: bool = False


class _Rows:
    """While it is entered, every call of a layer becomes a row, and calls of its parts alone become one together."""

    def __init__(self, network: Network, tally: _Tally) -> None:
        self._network, self._tally = network, tally
        self._rows: list[_Row] = []
        self._open: list[_Row] = []
        self._settled_macs = 0
        self._rest = _Row("rest", type(network).__name__)
        self._seen: set[nn.Parameter] = set()
        self._hooks: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        listed = layers(self._network)
        for name, module in self._network.named_modules():  # a network may call a part of a layer instead of the layer
            parts = name.split(".")
            layer = next((found for n in range(len(parts)) if (found := ".".join(parts[: n + 1])) in listed), None)
            if layer is not None:
                begin = partial(self._begin, layer, listed[layer])
                self._hooks += [module.register_forward_pre_hook(begin), module.register_forward_hook(self._end)]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _begin(self, name: str, layer: nn.Module, module: nn.Module, _: object) -> None:
        self._settle()
        going_on = self._open[-1:] if module is layer else [*self._open[-1:], *self._rows[-1:]]
        row = next((row for row in going_on if row.name == name), None)
        if row is None:
            row = _Row(name, type(layer).__name__)
            self._rows.append(row)
            for around in self._open[-1:]:
                around.holds_others = True
        self._open.append(row)

    def _end(self, module: nn.Module, _: object, out: object) -> None:
        self._settle()
        row = self._open.pop()
        row.output = next(tuple(t.shape[1:]) for t in tree_leaves(out) if isinstance(t, Tensor))
        row.parameters += self._unseen(module)

    def _settle(self) -> None:
        """What was computed since the last call began or ended is of the innermost layer, and of none outside of all."""
        (self._open[-1] if self._open else self._rest).macs += self._tally.macs - self._settled_macs
        self._settled_macs = self._tally.macs

    def _unseen(self, module: nn.Module) -> int:
        new = {p for p in module.parameters() if p.requires_grad} - self._seen
        self._seen |= new
        return sum(p.numel() for p in new)

    def layers(self) -> tuple[Layer, ...]:
        """The rows in order, and one more for what is in none of them."""
        self._settle()
        self._rest.parameters += self._unseen(self._network)
        rows = [row for row in self._rows if row.macs or row.parameters or not row.holds_others]
        rows += [self._rest] if self._rest.macs or self._rest.parameters else []
        return tuple(Layer(row.name, row.kind, row.output, row.parameters, row.macs / 1e9) for row in rows)
