"""`python -m tinkit`: the command line without its script, as torchrun starts it."""

from tinkit.cli import main

if __name__ == "__main__":
    main()
