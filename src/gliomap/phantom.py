"""gliomap phantom: synthetic studies with a known truth, written in the naming of any supported dataset."""

from dataclasses import dataclass
from pathlib import Path

from gliomap.data.phantoms import STUDIES_PER_SEED
from gliomap.data.synthetic import GENERATOR_VERSION, make_phantom
from gliomap.data.writing import LAYOUTS, dataset_json, phantom_id, study_files
from gliomap.errors import UsageError
from gliomap.files import json_bytes, write_files
from gliomap.manifest import RunRecord
from gliomap.progress import progress_bar
from gliomap.volume import Volume

MAX_SIZE = 512


@dataclass(frozen=True)
class PhantomOptions:
    """What `phantom` is asked for.

    ``size`` is the number of voxels left to right (240 gives 240 x 240 x 155 at 1 mm). ``randomise`` goes from realistic
    contrast (0) to domain-randomised (1). Study ``i`` of seed ``s`` is always the same.
    """

    output: Path
    studies: int = 1
    layout: str = "brats2021"
    seed: int = 0
    size: int = 240
    randomise: float = 0.0
    kind: str | None = None
    quiet: bool = False


def phantom(options: PhantomOptions) -> list[str]:
    """Write synthetic studies; returns their ids.

    Raises:
        UsageError: an option is out of range.
        InputError: the folder cannot be written.
    """
    if options.layout not in LAYOUTS:
        raise UsageError(f"no layout is called {options.layout!r}; expected one of {', '.join(LAYOUTS)}")
    if not 1 <= options.studies <= STUDIES_PER_SEED or options.size > MAX_SIZE:
        raise UsageError(f"expected 1 to {STUDIES_PER_SEED} studies of a size up to {MAX_SIZE}")
    record = RunRecord("phantom", options)
    rows = []
    with progress_bar("growing phantoms", options.studies, quiet=options.quiet) as bar:
        for index in range(options.studies):
            number = options.seed * STUDIES_PER_SEED + index
            study = phantom_id(options.layout, GENERATOR_VERSION, number)
            made = make_phantom(number, size=options.size, randomise=options.randomise, kind=options.kind)
            images, classes = Volume(made.images, made.affine), Volume(made.classes[None], made.affine)
            files = study_files(
                options.layout, study, images, classes, f"gliomap phantom, generator {GENERATOR_VERSION}"
            )
            write_files({options.output / name: content for name, content in files.items()})
            rows.append({"study": study, "seed": number, "kind": made.kind})
            bar.advance()
    written = dataset_json(options.layout, [row["study"] for row in rows])
    written["run.json"] = json_bytes(record.content(generator_version=GENERATOR_VERSION, studies=rows))
    write_files({options.output / name: content for name, content in written.items()})
    return [row["study"] for row in rows]
