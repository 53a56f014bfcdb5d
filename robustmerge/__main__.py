"""`python -m robustmerge`: the same as the command `robustmerge`."""

from robustmerge.cli.program import main

if __name__ == "__main__":
    main()
