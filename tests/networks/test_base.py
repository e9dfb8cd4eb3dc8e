import subprocess
import sys

import pytest
import torch
from torch import nn

from gliomap.networks.base import Network, Outputs, as_slices, run


class Two(Network):
    """Two parts, one after the other."""

    size_divisor, in_channels = 1, 2

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv3d(2, 3, 1), nn.Dropout(0.5))
        self.second = nn.Conv3d(3, 2, 1)
        self.calls = 0

    def supervised(self, x):
        self.calls += 1
        return Outputs((self.second(self.first(x)),))


def test_a_frozen_part_gets_no_gradient_and_stays_in_evaluation_mode():
    network, x = Two(), torch.ones(1, 2, 2, 2, 2)
    network.freeze(["first"])
    network.train()
    assert network.training
    assert network.second.training
    assert not network.first[1].training
    assert torch.equal(network(x), network(x))
    network(x).sum().backward()
    assert network.first[0].weight.grad is None
    assert network.second.weight.grad is not None
    assert not network.eval().second.training


def test_freezing_what_is_not_there_is_refused():
    with pytest.raises(ValueError, match="no part 'third'"):
        Two().freeze(["third"])


def test_slices_are_the_axial_planes_in_order():
    x = torch.arange(2 * 3 * 4 * 5 * 6.0).reshape(2, 3, 4, 5, 6)
    slices = as_slices(x)
    assert slices.shape == (8, 3, 5, 6)
    assert torch.equal(slices[5], x[1, :, 1])
    assert torch.equal(as_slices(x[:, 0])[6], x[1, 0, 2])


def test_recomputed_activations_give_the_same_gradients_for_a_second_forward_pass():
    calls = []

    class Counted(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv3d(2, 2, 1)

        def forward(self, x):
            calls.append(1)
            return torch.relu(self.conv(x))

    torch.manual_seed(0)
    module, x = Counted(), torch.randn(1, 2, 3, 3, 3)
    gradients = []
    for recompute in (False, True):
        module.zero_grad()
        run(module, x, recompute=recompute).square().sum().backward()
        gradients.append(module.conv.weight.grad.clone())
    assert torch.equal(*gradients)
    assert len(calls) == 3
    with torch.inference_mode():
        run(module, x, recompute=True)
    assert len(calls) == 4


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' heaps are not asked to keep anything")
def test_a_kept_heap_hands_out_the_same_pages_again():
    program = """
import resource
import torch
from gliomap.networks import keep_heap
keep_heap()
for turn in range(20):
    if turn == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(2**26, dtype=torch.uint8).fill_(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) <= 2**26 / 4096  # the pages of one of the ten
