"""Where every page's template comes from, so that all pages escape what they print."""

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined


@cache
def pages() -> Environment:
    """The templates of this package: every value that they print is escaped, and one that is not there is an error."""
    return Environment(
        loader=PackageLoader("gliomap.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
