"""Silence Lightning's start-up messages: a benchmark starts the Trainer hundreds of times."""

import logging
import warnings


def quiet() -> None:
    """Silence Lightning's tips, device notes and known warnings; warnings about edits stay."""
    # Lightning 2.6 still calls a test that torch 2.13 deprecates.
    warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")
    warnings.filterwarnings("ignore", category=UserWarning, module="lightning.*num_workers.*")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
