"""A first edit loads what it needs: nothing of reports, grids, data sets or optional packages."""

import subprocess
import sys

#: An edit of the embedded model in a new process, and what it left in memory.
PROGRAM = """
import gc, sys, lightning_edit

collections = []
gc.callbacks.append(lambda phase, info: collections.append(phase))
from lightning_edit import MEMIT

print(len(collections), gc.isenabled())
from lightning_edit import MEMIT, EditRequest, load_language_model

editor = MEMIT(layers=[0], statistics="identity", steps=2, context_templates=["{}"])
request = EditRequest("0", "The capital of France is", "Lima", "France")
editor.edit_model(*load_language_model(), [request])
print(*sorted(sys.modules))
"""
PACKAGES = {
    "bm25s", "bokeh", "datasets", "jsonargparse", "lm_eval", "optuna", "pandas", "peft", "pyarrow",
    "selenium", "sentence_transformers", "submitit", "tensorboard", "torchvision",
}  # fmt: skip
#: Modules of the library that a first edit loads (274), and some more.
MOST_MODULES = 285
ROOMS = {"analysis", "benchmark", "callbacks", "cli", "export", "metrics", "report", "session"}


def test_a_first_edit_loads_only_what_it_needs() -> None:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    collections, enabled, *loaded = run.stdout.split()
    # Collections would be a fifth of the time of these imports; one follows, which begins and ends.
    assert int(collections) <= 2
    assert enabled == "True"
    assert "lightning_edit.editors.locate.memit" in loaded
    assert PACKAGES.isdisjoint(loaded)
    assert sum(name.startswith("lightning_edit") for name in loaded) <= MOST_MODULES
    assert {f"lightning_edit.{room}" for room in ROOMS}.isdisjoint(loaded)
