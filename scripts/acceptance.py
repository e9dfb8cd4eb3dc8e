"""make acceptance: what takes too long for the test suite. One line PASS or FAIL per claim, with what was measured.

Arguments are the parts to run, by the names of their functions; all, if there are none.
"""

import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean

import nibabel as nib
import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from measured import peak_memory_gb  # noqa: E402 - from the tests
from studies import small_pairs  # noqa: E402

from gliomap.files import read_json  # noqa: E402
from gliomap.model_file import default_model, save_model  # noqa: E402
from gliomap.networks import build_network  # noqa: E402
from gliomap.recipe import with_settings  # noqa: E402
from gliomap.recipes import RECIPES  # noqa: E402
from gliomap.rows import read_rows  # noqa: E402

REAL = Path(os.environ.get("GLIOMAP_REAL_DATA") or ROOT.parent / "shared" / "data")
GLIOMAP = (sys.executable, "-m", "gliomap")
Claim = tuple[bool, str]


def run(*arguments: str | Path, folder: Path) -> str:
    done = subprocess.run([*GLIOMAP, *map(str, arguments)], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout


def finished_studies(folder: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("many.csv.*.part.jsonl"))


def thousand_pairs(folder: Path) -> Iterator[Claim]:
    small_pairs(folder / "many", 1000, models=("a",), repeat=20)
    small_pairs(folder / "few", 20, models=("a",))
    match = ("--match", "{study}/pred_{model}.nii.gz")
    run("evaluate", "few", "few", *match, "-o", "few.csv", "--jobs", "1", folder=folder)
    command = ("evaluate", "many", "many", *match, "-o", "many.csv", "--jobs", "1")
    begun = subprocess.Popen([*GLIOMAP, *command], cwd=folder, stdout=subprocess.DEVNULL)
    while begun.poll() is None and finished_studies(folder) < 400:
        time.sleep(0.01)
    begun.kill()
    begun.wait()
    finished = finished_studies(folder)
    run(*command, folder=folder)
    kept = read_json(folder / "many.run.json")["continued"]
    yield (
        kept == finished >= 400,
        f"kill -9 of an evaluation of 1,000 pairs: {finished} were finished, {kept} were kept",
    )
    start = time.perf_counter()
    run("evaluate", "many", "many", *match, "-o", "again.csv", "--jobs", "1", folder=folder)
    time_s = time.perf_counter() - start
    same = (folder / "many.csv").read_bytes() == (folder / "again.csv").read_bytes()
    yield same, "the table after the kill is that of a run that was not killed, byte for byte"
    few, many = (read_json(folder / f"{name}.run.json")["peak_memory_mb"] for name in ("few", "again"))
    yield many < few + 25, f"memory: {few:.0f} MB for 20 pairs, {many:.0f} MB for 1,000 ({time_s:.0f} s, one process)"


def attention_or_none(folder: Path) -> Iterator[Claim]:
    data = REAL / "predictions" / "BraTS20_attention_vs_none"
    options = ("--match", "{study}/pred_{model}.nii.gz", "--labels", "brats2021", "--truth-labels", "brats2021")
    run("evaluate", data, data, *options, "-o", "attention.csv", folder=folder)
    pair = "baseline_attention+waveloss_attention:baseline_no_attention+waveloss_no_attention"
    told = run("compare", "attention.csv", "--pair", pair, "-o", "attention", folder=folder)
    answers = [line for line in told.splitlines() if re.match(r"(ET|TC|WT):.* Dice ", line)]
    shown = len(answers) == 3 and all(re.search(r"95 % interval.*15 studies.*can show", line) for line in answers)
    yield shown, "did attention help? " + " | ".join(answers)


def metrics_are_fast(_: Path) -> Iterator[Claim]:
    script = ROOT / "benchmarks" / "metrics.py"
    done = subprocess.run([sys.executable, script], check=True, capture_output=True, text=True, cwd=ROOT)
    slowest = min(float(ratio) for ratio in re.findall(r"DeepMind .* ratio +([\d.]+)", done.stdout))
    yield slowest >= 1, f"metrics against DeepMind: the smallest ratio of all cases is {slowest}"
    last = done.stdout.strip().splitlines()[-1]
    ratio = float(re.findall(r"\d+(?:\.\d+)?", last)[0])
    yield ratio >= 12, f"metrics against MONAI: {last}"


QUARTER = ("--max-time", "15m", "--set", "training.patches=2400", "--set", "training.validate_every=800", "--quiet")
"""A quarter of an hour, and as many patches as two slow cores see in it, so that the learning rate comes to its end."""


def trained_on_phantoms(folder: Path) -> Iterator[Claim]:
    run("phantom", "-o", "data", "--studies", "60", "--seed", "1", "--quiet", folder=folder)
    run("phantom", "-o", "unseen", "--studies", "20", "--seed", "2", "--quiet", folder=folder)
    run("train", "attention_resunet_small", "data", "-o", "run", *QUARTER, folder=folder)
    run("evaluate", "run/model.safetensors", "unseen", "-o", "scores.csv", "--quiet", folder=folder)
    means = mean_dice(folder / "scores.csv")
    yield means["WT"] > 0.8, f"15 minutes on 60 phantoms, 20 unseen ones: {in_words(means, folder / 'run')}"


def trained_on_real_studies(folder: Path) -> Iterator[Claim]:
    run("split", REAL / "training", "-o", "folds.json", "--folds", "5", folder=folder)
    held_out = read_json(folder / "folds.json")["folds"][0]
    options = ("--folds", "folds.json", "--fold", "0", *QUARTER)
    run("train", "attention_resunet_small", REAL / "training", "-o", "run", *options, folder=folder)
    scored = ("--folds", "folds.json", "--fold", "0", "-o", "scores.csv", "--quiet")
    run("evaluate", "run/model.safetensors", REAL / "training", *scored, folder=folder)
    means = mean_dice(folder / "scores.csv")
    yield True, f"15 minutes on real studies, the {len(held_out)} of fold 0 unseen: {in_words(means, folder / 'run')}"


def fifty_killed(folder: Path) -> Iterator[Claim]:
    run("phantom", "-o", "data", "--studies", "50", "--size", "64", "--quiet", folder=folder)
    run("segment", "data", "-o", "whole", "--quiet", folder=folder)
    command = [*GLIOMAP, "segment", "data", "-o", "killed", "--continue", "--quiet"]
    seed = random.randrange(1000)
    rng, at_kills = random.Random(seed), list[int]()
    for finished in sorted(rng.sample(range(2, 48), 3)):
        begun = subprocess.Popen(command, cwd=folder)
        while begun.poll() is None and len(list(folder.glob("killed/*/record.json"))) < finished:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.3))
        begun.kill()
        begun.wait()
        at_kills.append(len(list(folder.glob("killed/*/record.json"))))
        if begun.returncode != -signal.SIGKILL:
            yield False, f"a run of 50 studies ended before it could be killed (seed {seed})"
    run(*command[3:], folder=folder)
    whole, killed = (
        {path.relative_to(folder / name): path.read_bytes() for path in (folder / name).rglob("*") if path.is_file()}
        for name in ("whole", "killed")
    )
    same = [whole[path] == killed.get(path) for path in whole if path.name == "segmentation.nii.gz"]
    kept = read_json(folder / "killed" / "run.json")["continued"]
    yield (
        all(same) and len(same) == 50 and whole.keys() == killed.keys() and kept == at_kills[-1],
        f"50 studies, killed when {', '.join(map(str, at_kills))} were done (seed {seed}) and continued: {sum(same)} label "
        f"maps as of a run that was not killed, {len(killed.keys() ^ whole.keys())} other files",
    )


LIMIT_GB = 4.0


def large_study(folder: Path) -> Iterator[Claim]:
    run("phantom", "-o", "small", "--studies", "1", "--quiet", folder=folder)
    for path in sorted(folder.glob("small/*/*.nii.gz")):
        image = nib.Nifti1Image.from_filename(path)
        steps = [np.minimum(np.arange(n) * o // n, o - 1) for n, o in zip((512, 512, 200), image.shape, strict=True)]
        affine = image.affine @ np.diag([*(o / n for n, o in zip((512, 512, 200), image.shape, strict=True)), 1])
        place = folder / "large" / path.name
        place.parent.mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[np.ix_(*steps)], affine), place)
    recipe = with_settings(
        RECIPES["attention_resunet_small"], ["network.settings.base=4", "preprocessing.spacing_mm=null"]
    )
    weights = {name: tensor.numpy() for name, tensor in build_network(recipe).state_dict().items()}
    save_model(folder / "own_grid.safetensors", recipe, weights, {})
    for model in ([], ["-m", folder / "own_grid.safetensors"]):
        options = ["--max-memory", str(LIMIT_GB), "--quiet", *model]
        peak = peak_memory_gb([*GLIOMAP, "segment", folder / "large", "-o", folder / "out", *options])
        (row,) = read_json(folder / "out" / "run.json")["studies"]
        yield (
            peak < LIMIT_GB,
            f"512 x 512 x 200 voxels, {row['passes'][0]}: {peak:.2f} GB, {LIMIT_GB:g} allowed",
        )


def cluster(folder: Path) -> Iterator[Claim]:
    if find_spec("ray") is None:
        print("SKIP  Ray is not installed; pip install -e '.[cluster]'")
        return
    run("phantom", "-o", "data", "--studies", "6", "--size", "64", "--quiet", folder=folder)
    run("segment", "data", "-o", "one/maps", "--score", "--engine", "torch", "--quiet", folder=folder)
    program = ROOT / "tests" / "programs" / "two_nodes.py"
    done = subprocess.run(
        [sys.executable, program, "data", "two", default_model() or ""],
        cwd=folder, capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip
    last = (done.stderr.strip().splitlines() or [""])[-1]
    ok = done.returncode == 0
    yield ok, "two nodes of a Ray cluster, one killed when the first study was done" + ("" if ok else f": {last}")
    if ok:
        maps = [path.relative_to(folder / "one") for path in folder.glob("one/maps/*/segmentation.nii.gz")]
        same = [(folder / "one" / path).read_bytes() == (folder / "two" / path).read_bytes() for path in maps]
        yield all(same) and len(same) == 6, f"its label maps are those of one machine: {sum(same)} of 6"


def mean_dice(scores: Path) -> dict[str, float]:
    rows = [row for row in read_rows(scores) if row.metric == "dice"]
    regions = dict.fromkeys(row.region for row in rows)
    return {region: fmean(row.value or 0.0 for row in rows if row.region == region) for region in regions}


def in_words(means: dict[str, float], trained: Path) -> str:
    record = read_json(trained / "run.json")
    dice = ", ".join(f"{region} {mean:.3f}" for region, mean in means.items())
    return f"mean Dice {dice} ({record['ended']} after {record['patches']} patches and {record['train_time_s']:.0f} s)"


def main() -> int:
    parts: list[Callable[[Path], Iterator[Claim]]] = [
        thousand_pairs, metrics_are_fast, fifty_killed, large_study, cluster, trained_on_phantoms,
    ]  # fmt: skip
    real = [attention_or_none, trained_on_real_studies]
    asked = sys.argv[1:] or [part.__name__ for part in (*parts, *real)]
    if unknown := set(asked) - {part.__name__ for part in (*parts, *real)}:
        sys.exit(f"no part is called {', '.join(sorted(unknown))}")
    if REAL.is_dir():
        parts += real
    else:
        print(f"SKIP  the real studies are not in {REAL}; say where with GLIOMAP_REAL_DATA")
    failed = 0
    for part in (part for part in parts if part.__name__ in asked):
        with tempfile.TemporaryDirectory() as folder:
            for good, text in part(Path(folder)):
                print("PASS " if good else "FAIL ", text, flush=True)
                failed += not good
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
