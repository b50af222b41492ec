"""``python -m crossfeed`` is the command ``crossfeed``."""

import sys

from crossfeed.cli import main

if __name__ == "__main__":
    sys.exit(main())
