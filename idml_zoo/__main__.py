"""``python -m idml_zoo``: the same as the command ``idml-zoo``."""

import sys

from idml_zoo.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
