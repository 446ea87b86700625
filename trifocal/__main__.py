"""`python -m trifocal` is the `trifocal` command."""

import sys

from trifocal.cli import main

if __name__ == "__main__":
    sys.exit(main())
