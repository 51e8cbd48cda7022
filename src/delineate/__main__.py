"""`python -m delineate`: the command line."""

from delineate.cli import main

if __name__ == "__main__":
    main()
