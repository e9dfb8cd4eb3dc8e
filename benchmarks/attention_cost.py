"""What attention costs: self-attention, context prior and the supervised attention module (SAM) beside table 3 of paper 002.

Run: ``python benchmarks/attention_cost.py``. Sizes are the paper's: images of 4 x 128^3, features of 128 x 16^3 at a
downsampling rate of 8. ``GMAC`` are multiply-accumulates of what gliomap runs, at output size; ``as printed`` is the reading of
the paper's rule that comes nearest to its figure. Times are of one forward pass on this machine's CPU.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gliomap.networks.cga_unet import Downsampling, SupervisedAttention, attention_path
from gliomap.networks.non_local import ContextPrior, SelfAttention

IMAGES = (1, 4, 128, 128, 128)
WIDTH = 16
"""Of the network's first level, and of the attention path at a rate of 8."""


@dataclass(frozen=True)
class Counted:
    """10^9 operations and parameters."""

    giga: float
    parameters: int


@dataclass(frozen=True)
class Row:
    """One row of table 3: its figures, the module that we run, the shapes it takes, and the rule that gives the figures."""

    name: str
    rate: Downsampling
    printed: Counted
    build: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...]
    as_printed: Callable[[], Counted]
    remark: str


def features(rate: Downsampling) -> tuple[int, ...]:
    """Shape of the encoder's map at a downsampling rate."""
    return (1, WIDTH * rate, *(n // rate for n in IMAGES[2:]))


def sam(rate: Downsampling) -> nn.Module:
    return SupervisedAttention(attention_path(IMAGES[1], WIDTH, rate), mask="hard", update="all")


def pairwise_as_printed(convolutions: int, products: int) -> Counted:
    """1x1x1 convolutions from C to C without bias, and products of an N x N with an N x C matrix."""
    channels, voxels = features(8)[1], torch.Size(features(8)[2:]).numel()
    weights = convolutions * channels**2
    return Counted((weights * voxels + products * voxels**2 * channels) / 1e9, weights)


def path_as_printed(rate: Downsampling, *, everything: bool) -> Counted:
    """Convolutions of the attention path and their weights.

    ``everything`` adds to the operations a bias for each value that comes out, two operations for the normalisation and one for
    the ReLU of all but the last convolution, and a pass over features and class maps for the update.
    """
    with torch.device("meta"):
        path, x = attention_path(IMAGES[1], WIDTH, rate), torch.zeros(IMAGES)
    weights = operations = 0
    for layer in path:
        assert isinstance(layer, nn.Conv3d)
        x = layer(x)
        weights += layer.weight.numel()
        operations += x.numel() * layer.weight[0].numel()
        if everything:
            operations += x.numel() * (1 if layer is path[-1] else 4)
    if everything:
        operations += torch.Size(features(rate)).numel() * x.shape[1]
    return Counted(operations / 1e9, weights)


ROWS = (
    Row(
        "self-attention",
        8,
        Counted(4.495, 492_000),
        lambda: SelfAttention(features(8)[1]),
        (features(8),),
        lambda: pairwise_as_printed(3, 2),
        "three convolutions, two products; printed parameters are ten times too many",
    ),
    Row(
        "context prior",
        8,
        Counted(2.284, 328_000),
        lambda: ContextPrior(features(8)[1]),
        (features(8),),
        lambda: pairwise_as_printed(2, 1),
        "printed: two convolutions, one product of the two it needs; parameters ten times too many",
    ),
    Row(
        "SAM",
        8,
        Counted(0.675, 95_000),
        lambda: sam(8),
        (IMAGES, features(8)),
        lambda: path_as_printed(8, everything=False),
        "table 1's path; printed parameters contradict the paper's own total of 4.77 M",
    ),
    Row(
        "SAM",
        4,
        Counted(1.97, 34_000),
        lambda: sam(4),
        (IMAGES, features(4)),
        lambda: path_as_printed(4, everything=True),
        "with normalisation, ReLU and update; weights cut to three digits",
    ),
    Row(
        "SAM",
        2,
        Counted(2.89, 10_000),
        lambda: sam(2),
        (IMAGES, features(2)),
        lambda: path_as_printed(2, everything=True),
        "with normalisation, ReLU and update; no path was found that fits both figures",
    ),
)


def cost(row: Row) -> Counted:
    """What the module that gliomap runs costs, counted without arithmetic."""
    with torch.device("meta"):
        module, inputs = row.build(), [torch.zeros(shape) for shape in row.shapes]
    with FlopCounterMode(display=False) as counter:
        module(*inputs)
    return Counted(counter.get_total_flops() / 2e9, sum(p.numel() for p in module.parameters()))


def forward_ms(row: Row, repeats: int) -> float:
    """Median time of a forward pass, channels last as the networks run."""
    torch.manual_seed(0)
    layout = torch.channels_last_3d
    module = row.build().to(memory_format=layout).eval()  # pyright: ignore[reportCallIssue] - missing in torch's stubs
    inputs: list[Tensor] = [torch.randn(shape).to(memory_format=layout) for shape in row.shapes]
    seconds: list[float] = []
    with torch.inference_mode():
        module(*inputs)
        for _ in range(repeats):
            start = time.perf_counter()
            module(*inputs)
            seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds)


def deviation(ours: float, printed: float) -> str:
    return f"{100 * (ours / printed - 1):+.1f} %"


def main() -> None:
    """Parse the command line and print table 3 with our figures, and the ratio of SAM to self-attention in the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="forward passes to take the median time of")
    options = parser.parse_args()
    heads = (
        "module",
        "rate",
        "GFLOPs",
        "as printed",
        "deviation",
        "GMAC",
        "params",
        "as printed",
        "deviation",
        "ours",
        "ms",
    )
    widths = (15, 5, 8, 11, 10, 8, 9, 11, 10, 9, 8)
    print("".join(f"{head:>{width}}" for head, width in zip(heads, widths, strict=True)) + "  remark")
    measured: list[tuple[Counted, float]] = []
    for row in ROWS:
        ours, as_printed, ms = cost(row), row.as_printed(), forward_ms(row, options.repeats)
        measured.append((ours, ms))
        cells = (
            row.name,
            str(row.rate),
            f"{row.printed.giga:.3f}",
            f"{as_printed.giga:.4f}",
            deviation(as_printed.giga, row.printed.giga),
            f"{ours.giga:.4f}",
            f"{row.printed.parameters:,}",
            f"{as_printed.parameters:,}",
            deviation(as_printed.parameters, row.printed.parameters),
            f"{ours.parameters:,}",
            f"{ms:.1f}",
        )
        print("".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)) + f"  {row.remark}")
    (attention, attention_ms), (supervised, supervised_ms) = measured[0], measured[2]
    print(
        f"\nSAM at a rate of 8 costs {supervised.giga / attention.giga:.3f} of self-attention in multiply-accumulates "
        f"(printed {ROWS[2].printed.giga / ROWS[0].printed.giga:.3f}) and {supervised_ms / attention_ms:.2f} of its time"
    )


if __name__ == "__main__":
    main()
