"""Errors that a person can act on, each with the exit code the command line ends with."""

import importlib
from types import ModuleType


class GliomapError(Exception):
    """A failure whose message says what is wrong, what was expected and what to do."""

    exit_code = 1


class UsageError(GliomapError):
    """The command or its options make no sense together (exit code 2)."""

    exit_code = 2


class InputError(GliomapError):
    """Data that would give a wrong answer, or a place that cannot be read or written (exit code 3)."""

    exit_code = 3


class IntegrityError(GliomapError):
    """A file that is not what it claims to be, such as a model whose content hash differs (exit code 4)."""

    exit_code = 4


class Interrupted(GliomapError):  # noqa: N818 - not an error of anybody's
    """Somebody pressed Ctrl-C (exit code 130)."""

    exit_code = 130


def reason(error: Exception) -> str:
    """Why one study of many failed, in words: a known failure's message, anything else as what it is."""
    return str(error) if isinstance(error, GliomapError) else f"unexpected {error!r}"


def import_extra(module: str, extra: str) -> ModuleType:
    """Import an optional dependency.

    Raises:
        UsageError: it is not installed; the message names the extra and the install command.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(
            f"this needs the optional package {module!r}, which is not installed: pip install 'gliomap[{extra}]'"
        ) from error
