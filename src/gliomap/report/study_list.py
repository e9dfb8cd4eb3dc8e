"""The page of `gliomap view` that lists several studies, each with a link to its own."""

from collections.abc import Sequence
from typing import NamedTuple

from gliomap.report.study import MODALITY_TITLES
from gliomap.report.templating import pages


class ListedStudy(NamedTuple):
    """A study to choose: its id, its images by modality, whether it has a label map, and how it was found."""

    study: str
    modalities: tuple[str, ...]
    labelled: bool
    layout: str


def study_list_page(studies: Sequence[ListedStudy]) -> str:
    """Return the page as HTML text; study N, from 1, is at the address ``N/``."""
    template = pages().get_template("study_list.html.j2")
    return template.render(studies=studies, titles=MODALITY_TITLES)
