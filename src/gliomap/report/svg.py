"""The elements of inline SVG that charts are made of: text is escaped, lengths are written to a tenth of a pixel."""

import math
from collections.abc import Sequence

from markupsafe import Markup

WIDTH = 420
"""Of a chart of which two or three stand beside each other, in pixels."""


def drawing(title: str, described: str, height: float, parts: Sequence[Markup], width: int = WIDTH) -> Markup:
    """A whole chart, with what it shows in words for those who do not see it."""
    words = Markup("<title>{}</title><desc>{}</desc>").format(title, described)
    size = {"viewBox": f"0 0 {width} {height:.0f}", "width": width, "height": math.ceil(height)}
    return element("svg", words + Markup("").join(parts), cls="chart", role="img", **size)


def text(words: str, x: float, y: float, cls: str, anchor: str = "start") -> Markup:
    """Words on a base line at y, which start, end or have their middle at x."""
    return element("text", Markup.escape(words), cls=cls, x=x, y=y, text_anchor=anchor)


def line(x1: float, y1: float, x2: float, y2: float, cls: str) -> Markup:
    """A straight line."""
    return element("line", cls=cls, x1=x1, y1=y1, x2=x2, y2=y2)


def dot(x: float, y: float, name: str, cls: str) -> Markup:
    """A circle with a name where the pointer rests."""
    return element("circle", Markup("<title>{}</title>").format(name), cls=cls, cx=x, cy=y, r=3)


def element(tag: str, content: Markup | None = None, *, cls: str, **attributes: str | float) -> Markup:
    """An element of a style sheet's class; an underscore in an attribute's name stands for a hyphen."""
    written = {"class": cls} | {name.replace("_", "-"): value for name, value in attributes.items()}
    words = Markup("").join(
        Markup(' {}="{}"').format(name, value if isinstance(value, str | int) else f"{value:.1f}")
        for name, value in written.items()
    )
    return Markup("<{}{}>{}</{}>").format(tag, words, content or "", tag)
