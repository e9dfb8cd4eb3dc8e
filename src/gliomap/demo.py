"""gliomap demo: a synthetic study, segmented by the model that ships, scored against its known truth."""

from dataclasses import dataclass
from pathlib import Path

from gliomap.phantom import PhantomOptions, phantom
from gliomap.segment import SegmentOptions, SegmentResult, segment


@dataclass(frozen=True)
class DemoOptions:
    """Where `demo` leaves its study and results, and which synthetic study it is."""

    output: Path = Path("demo")
    seed: int = 0
    quiet: bool = False


def demo(options: DemoOptions) -> SegmentResult:
    """Write a synthetic study of the most frequent kind in BraTS naming, segment it with the shipped model, and score it."""
    studies = options.output / "study"
    (study,) = phantom(PhantomOptions(studies, seed=options.seed, kind="typical", quiet=options.quiet))
    return segment(SegmentOptions(studies / study, options.output, score=True, quiet=options.quiet))
