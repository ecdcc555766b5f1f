"""``python -m gmcore``: the command line."""

import sys

from gmcore.cli import main

if __name__ == "__main__":
    sys.exit(main())
