"""What the tests of `gliomap reproduce` share."""

from gliomap.phantom import PhantomOptions, phantom


def four_phantoms(tmp_path_factory):
    """A folder of studies that networks of a few weights are trained on in a second."""
    folder = tmp_path_factory.mktemp("phantoms")
    phantom(PhantomOptions(folder, studies=4, size=24, quiet=True))
    return folder


def never(*_, **__):
    raise AssertionError("this should not run")
