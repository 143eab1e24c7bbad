"""`python -m tinkit`: the command line, where a launcher such as torchrun wants a module."""

if __name__ == "__main__":
    from tinkit.cli import main

    main()
