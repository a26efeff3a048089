"""`python -m alpro_hf` is `alpro`."""

import sys

from .cli.main import main

if __name__ == "__main__":
    sys.exit(main())
