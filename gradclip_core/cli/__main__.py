"""``python -m gradclip_core.cli``."""

import sys

from gradclip_core.cli import main

if __name__ == "__main__":
    sys.exit(main())
