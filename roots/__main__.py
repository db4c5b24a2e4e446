"""`python -m roots` and `torchrun -m roots`: the command line without the script on PATH."""

from roots.cli.main import main

if __name__ == "__main__":
    main()
