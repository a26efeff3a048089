"""`python -m alpro_hf` does the same as `alpro`, for torchrun and `accelerate launch`."""

import sys

from .cli.main import main

if __name__ == "__main__":
    sys.exit(main())
