"""`python -m attnserve`: the same as the command `attnserve`."""

import sys

from attnserve.cli import main

if __name__ == "__main__":
    sys.exit(main())
