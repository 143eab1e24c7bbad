"""`python -m tinkit.cli`: the command line without its script."""

from tinkit.cli import main

main()
