"""`python -m mergekit_cl`: the same as `clmerge`."""

from mergekit_cl.cli import main

if __name__ == "__main__":
    main()
