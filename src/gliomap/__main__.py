"""`python -m gliomap`."""

from gliomap.cli import main

main()
