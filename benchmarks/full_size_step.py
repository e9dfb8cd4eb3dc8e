"""What one real training step of each paper's network costs on this machine: a batch of one of the paper's own patches.

Run: ``python benchmarks/full_size_step.py [RECIPE ...]``. Each step is a process of its own, so that its peak memory is its own.
"""

import argparse
import json
import subprocess
import sys
import time

import torch

from gliomap.losses import build_loss
from gliomap.machine import cores, peak_memory_mb
from gliomap.networks import as_slices, build_network, channels_last, fast_layout
from gliomap.recipes import RECIPES

PAPERS = ("dual_fusion", "druwas", "cga_unet", "aspp_attention_unet_t1c", "attention_resunet")


def step(name: str) -> dict[str, float | str]:
    """One forward and backward pass and Adam step of a recipe on noise, after everything is imported and built."""
    recipe = RECIPES[name]
    torch.manual_seed(0)
    network = channels_last(build_network(recipe))
    network.freeze(recipe.frozen)
    network.train()
    optimizer = torch.optim.Adam(network.parameters(), recipe.training.learning_rate)
    x = torch.randn(1, network.in_channels, *recipe.training.patch_size)
    y = torch.randint(0, 4, (1, *recipe.training.patch_size)).to(torch.uint8)
    if network.spatial_dims == 2:
        x, y = as_slices(x), as_slices(y)
    before, start = peak_memory_mb(), time.perf_counter()
    terms = build_loss(recipe.training.loss)(network.supervised(fast_layout(x)), y, recipe.target, 0)
    torch.stack(list(terms.values())).sum().backward()
    optimizer.step()
    return {
        "recipe": name,
        "patch": " x ".join(map(str, (network.in_channels, *x.shape[2:]))),
        "time_s": time.perf_counter() - start,
        "peak_mb": peak_memory_mb(),
        "before_mb": before,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=PAPERS)
    parser.add_argument("--one", help="run this recipe in this process and print JSON")
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(step(asked.one)))
        return
    print(f"{cores()} cores, torch {torch.__version__}")
    print(f"{'recipe':<28}{'patch':<22}{'time s':>8}{'peak MB':>10}{'of it the step':>16}")
    for name in asked.recipes:
        done = subprocess.run([sys.executable, __file__, "--one", name], capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{name:<28}failed with {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
            continue
        found = json.loads(done.stdout)
        grown = found["peak_mb"] - found["before_mb"]
        print(f"{name:<28}{found['patch']:<22}{found['time_s']:>8.1f}{found['peak_mb']:>10.0f}{grown:>16.0f}")


if __name__ == "__main__":
    main()
