"""LaTeX tables of a benchmark: captions in words, and labels that `\\ref` finds."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from lightning_edit.benchmark.captions import caption, latex_label
from lightning_edit.benchmark.columns import Column
from lightning_edit.benchmark.formats import write
from lightning_edit.benchmark.grid import Cell, ColumnGroup, Grid
from lightning_edit.benchmark.outcomes import CellOutcome
from lightning_edit.benchmark.summary import summaries_of
from lightning_edit.benchmark.tables import tables_of

EM = "reliability/em@tf"


def cell(method: str, **protocol: object) -> Cell:
    return Cell("tiny", "my_facts", "many", method, 0, {"protocol": protocol, "data": {}})


def outcome(one: Cell, measured: list[dict[str, float]]) -> CellOutcome:
    before = {str(number): dict.fromkeys(values, 0.0) for number, values in enumerate(measured)}
    points = {0: before, len(measured): {str(n): values for n, values in enumerate(measured)}}
    return CellOutcome(one, "done", "", points, {"edit_seconds": 1.0, "edits": len(measured)})


@pytest.mark.parametrize(
    ("protocol", "words"),
    [
        ({"protocol": "single"}, "each edit alone on the unedited model."),
        ({"protocol": "batch"}, "1,000 edits written at once."),
        ({"protocol": "sequential"}, "1,000 edits written one after the other."),
        (
            {"protocol": "sequential", "batch_size": 10},
            "1,000 edits written in batches of 10, one after the other.",
        ),
    ],
)
def test_captions_say_what_was_done_in_words(protocol: dict[str, object], words: str) -> None:
    columns = [Column(EM), Column("locality/kept@gen"), Column("seconds_per_edit")]
    text = caption(cell("A", **protocol), 1000, columns)
    assert text.startswith("Editing methods on my_facts with the model tiny: ")
    assert words in text
    assert "Reliability: the edited prompts; locality: prompts that should be answered" in text
    assert text.endswith("tf: teacher forced; gen: generated text.")


def test_every_table_of_a_grid_has_a_label_of_its_own_and_a_caption() -> None:
    groups = (ColumnGroup((EM,)), ColumnGroup(("seconds_per_edit",), title="time & memory"))
    shown = Grid(Path("g.yaml"), "G", "", (), {}, groups, (), (), {})
    made = tables_of(shown, [outcome(cell("A", protocol="batch"), [{EM: 1.0}, {EM: 0.0}])])
    latex = write(made, "latex", 80, 1, shown)
    labels = re.findall(r"\\label\{([^}]*)\}", latex)
    assert labels == ["tab:tiny-my-facts-many", "tab:tiny-my-facts-many-time-memory"]
    captions = re.findall(r"\\caption\{(.*)\}\n", latex)
    assert (
        r"Editing methods on my\_facts with the model tiny: 2 edits written at once." in captions[0]
    )
    assert r"time \& memory" in captions[1]
    assert all(r"half of a 95\% interval" in one for one in captions)
    assert latex_label("a_b · 1×2") == "tab:a-b-1-2"


def test_a_method_with_fewer_requests_is_named() -> None:
    full = outcome(cell("A", protocol="batch"), [{EM: 1.0}] * 4)
    part = outcome(cell("B", protocol="batch"), [{EM: 1.0}] * 3 + [{}])
    shown = Grid(Path("g.yaml"), "G", "", (), {}, (ColumnGroup((EM,)),), (), (), {})
    (made,) = tables_of(shown, [full, part])
    assert "n = 4 requests. Seed 0." in made.notes
    assert any(note.startswith("Fewer requests: B reliability 3.") for note in made.notes)
    (made,) = tables_of(shown, [full, replace(full, cell=cell("B", protocol="batch"))])
    assert not any("Fewer" in note for note in made.notes)


def test_a_summary_says_how_many_requests_each_protocol_has() -> None:
    shown = Grid(
        Path("g.yaml"), "G", "", (), {}, (), (), (), {}, summary=(("many", EM), ("few", EM))
    )
    done = [
        outcome(replace(cell(method), protocol=protocol), [{EM: 1.0}] * count)
        for method in "AB"
        for protocol, count in (("many", 4), ("few", 2))
    ]
    (made,) = summaries_of(shown, done)
    assert made.notes == ("n, requests: many 4, few 2.",)
