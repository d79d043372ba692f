"""The program ``lightning-edit``, also as ``python -m lightning_edit``."""

import sys

from lightning_edit.cli.main import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
