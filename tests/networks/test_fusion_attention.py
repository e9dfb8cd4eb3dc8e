import math

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from gliomap.errors import InputError
from gliomap.networks import fusion_attention
from gliomap.networks.fusion_attention import (
    AxialAttention,
    ChannelAttention,
    ExactAttention,
    LinearAttention,
    PooledAttention,
    WindowAttention,
    global_fusion_attention,
)

SIZE = (4, 8, 6)
KINDS = [
    ExactAttention(),
    PooledAttention(2),
    AxialAttention(),
    WindowAttention(2),
    ChannelAttention(),
    LinearAttention(),
]


def volumes(size=SIZE, channels=5):
    return torch.randn(3, 2, channels, *size, generator=torch.Generator().manual_seed(1)).mul(2).unbind()


def places(size=SIZE):
    """The place (d, h, w) of each voxel in the order of a flattened volume."""
    return torch.cartesian_prod(*(torch.arange(n) for n in size))


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


def by_brute_force(kind, query, key):
    """Every weight (B, queries, keys) of an attention whose tokens are voxels, written down as a matrix."""
    q, k, where = query.flatten(2).mT, key.flatten(2).mT, places(tuple(query.shape[2:]))
    match kind:
        case PooledAttention():
            k = F.avg_pool3d(key, [n // kind.size_divisor for n in key.shape[2:]]).flatten(2).mT
            seen = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool)
        case AxialAttention():
            seen = (where[:, None, 1:] == where[None, :, 1:]).all(2)
        case WindowAttention():
            cube = where // kind.size_divisor
            seen = (cube[:, None] == cube[None]).all(2)
        case LinearAttention():
            return torch.softmax(query, 1).flatten(2).mT @ torch.softmax(key.flatten(2), 2)
        case _:
            seen = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool)
    scores = q @ k.mT / math.sqrt(q.shape[2])
    return torch.softmax(scores.masked_fill(~seen, -math.inf), 2)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not isinstance(kind, ChannelAttention)], ids=type)
def test_attention_is_the_formula_over_the_voxels_it_sees(kind):
    query, key, value = volumes()
    values = F.avg_pool3d(value, (2, 4, 3)) if isinstance(kind, PooledAttention) else value
    attended = (by_brute_force(kind, query, key) @ values.flatten(2).mT).mT.unflatten(2, SIZE)
    torch.testing.assert_close(kind(query, key, value), attended * value, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not isinstance(kind, ChannelAttention)], ids=type)
@pytest.mark.parametrize("at_once", [2**25, 100, 1])
def test_key_weights_are_the_mean_over_all_queries_taken_a_part_at_a_time(kind, at_once, monkeypatch):
    monkeypatch.setattr(fusion_attention, "_SCORES_AT_ONCE", at_once)
    query, key, _ = volumes()
    mean = by_brute_force(kind, query, key).mean(1)
    size = (2, 2, 2) if isinstance(kind, PooledAttention) else SIZE
    expected = (mean / mean.amax(1, keepdim=True)).reshape(2, 1, *size)
    with Largest() as seen:
        found = kind.key_weights(query, key)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    one_query = 2 * math.prod(SIZE)
    assert seen.elements <= max(at_once, one_query, query.numel())


def test_channel_attention_compares_channels_by_their_mean_product():
    query, key, value = volumes()
    weights = torch.softmax(torch.einsum("bidhw,bjdhw->bij", query, key) / math.prod(SIZE), 2)
    attended = torch.einsum("bij,bjdhw->bidhw", weights, value)
    torch.testing.assert_close(ChannelAttention()(query, key, value), attended * value)
    mean = weights.mean(1)
    found = ChannelAttention().key_weights(query, key)
    assert found.shape == (2, 5, 1, 1, 1)
    torch.testing.assert_close(found[..., 0, 0, 0], mean / mean.amax(1, keepdim=True))


def test_channel_attention_of_a_repeated_volume_is_the_same():
    query, key, value = volumes()
    twice = ChannelAttention()(*(torch.cat([x, x], 2) for x in (query, key, value)))
    torch.testing.assert_close(twice[:, :, : SIZE[0]], ChannelAttention()(query, key, value))


def test_pooled_attention_on_the_full_grid_is_exact():
    for kind in (ExactAttention(), PooledAttention(6)):
        tensors = [x.clone().requires_grad_() for x in volumes((6, 6, 6), 8)]
        out = kind(*tensors)
        out.square().sum().backward()
        results = (out.detach(), *(x.grad for x in tensors), kind.key_weights(*tensors[:2]).detach())
        if isinstance(kind, ExactAttention):
            exact = results
    for ours, wanted in zip(results, exact, strict=True):
        torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS, ids=type)
def test_memory_layout_does_not_matter(kind):
    tensors = volumes()
    turned = [x.contiguous(memory_format=torch.channels_last_3d) for x in tensors]
    torch.testing.assert_close(kind(*turned), kind(*tensors), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", [ExactAttention(), PooledAttention(8), AxialAttention(), WindowAttention(8)], ids=type)
def test_scores_are_never_all_in_memory(kind):
    tensors = [x.clone().requires_grad_() for x in volumes((16, 16, 16), 8)]
    with Largest() as seen:
        kind(*tensors).sum().backward()
    assert seen.elements <= tensors[0].numel()


def test_exact_attention_refuses_what_would_never_end():
    def run(attention, *size):
        with torch.device("meta"):
            return attention(*(torch.zeros(1, 2, *size) for _ in range(3))).shape[2:]

    with pytest.raises(InputError, match=r"40,960 voxels needs 1\.7e\+09 scores.*kvpool"):
        run(ExactAttention(), 40, 32, 32)
    assert run(ExactAttention(), 32, 32, 32) == (32, 32, 32)
    assert run(ExactAttention(force=True), 40, 32, 32) == (40, 32, 32)


@pytest.mark.parametrize(
    ("kind", "grid", "gmac"),
    [
        ("exact", 8, 281_475),
        ("kvpool", 8, 68.7),
        ("kvpool", 16, 549.8),
        ("kvpool", 4, 8.6),
        ("axial", 8, 17.2),
        ("channel", 8, 4.3),
        ("linear", 8, 4.3),
        ("window", 8, 68.7),
        ("window", 4, 8.6),
    ],
)
def test_multiply_accumulates_at_128(kind, grid, gmac):
    attention = global_fusion_attention(kind, grid=grid, window=grid, force_exact=True)
    assert attention is not None
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        attention(*(torch.zeros(1, 32, 128, 128, 128) for _ in range(3)))
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmac, abs=0.05 if gmac < 1000 else 1)


def test_settings_reach_the_attention():
    def divisor(kind):
        attention = global_fusion_attention(kind, grid=4, window=2, force_exact=True)
        assert attention is not None
        return attention.size_divisor

    assert {kind: divisor(kind) for kind in ("kvpool", "window", "axial", "exact", "channel", "linear")} == {
        "kvpool": 4, "window": 2, "axial": 1, "exact": 1, "channel": 1, "linear": 1
    }  # fmt: skip
    assert global_fusion_attention("none", grid=4, window=2, force_exact=False) is None
    with pytest.raises(ValueError, match="no attention is called 'sparse'; expected one of kvpool, exact"):
        global_fusion_attention("sparse", grid=4, window=2, force_exact=False)
