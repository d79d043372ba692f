"""The page: escaped, small, whole or absent, and made of what was measured."""

import json
import random
import re
import string
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from lightning_edit.cli.report import main
from lightning_edit.exceptions import DataError, ReportError
from lightning_edit.report import page as page_module
from lightning_edit.report.cases import read_edits
from lightning_edit.report.page import MAX_BYTES, write_page
from lightning_edit.report.payload import unpack
from lightning_edit.report.runs import as_runs
from lightning_edit.report.story import summarise_run
from tests.report.runs import write_ripples, write_run

HOSTILE = (
    "</script><script>window.hostile = 1</script>",
    "<img src=x onerror='window.hostile = 1'>\"quoted\" & 'single' {{ 7 * 7 }}",
    "\u202eright to left\u202c \u0627\u0644\u0639\u0631\u0628\u064a\u0629 \U0001f600 <!-- $$x^2$$",
    "]]> \u2028 \x00 @x{safe} <bdi>\\",
)


class _Page(HTMLParser):
    """Elements, their attributes, and the text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.scripts: dict[str, str] = {}
        self._script: str | None = None
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._script = (dict(attrs).get("id") or "code") if tag == "script" else None

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._script = None

    def handle_data(self, data: str) -> None:
        if self._script is not None:
            self.scripts[self._script] = self.scripts.get(self._script, "") + data
        else:
            self.text.append(data)


def read(page: Path) -> _Page:
    return _Page(page.read_text(encoding="utf-8"))


def shown_cases(page: Path) -> dict[str, Any]:
    found: dict[str, Any] = unpack(read(page).scripts["cases-data"])
    return found


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 4, prompts=HOSTILE, answers=HOSTILE, editor=HOSTILE[0])
    write_ripples(run, [HOSTILE[0]], prompts=HOSTILE)
    page = read(write_page([run], tmp_path / "page.html"))
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == 4
    assert "img" not in tags
    assert not [name for _, attrs in page.elements for name in attrs if name.startswith("on")]
    text = "".join(page.text)
    for piece in HOSTILE:
        assert piece.replace("\x00", "\ufffd") in text or piece in text
    assert "49" not in re.findall(r"'single' (\S+)", text)
    assert set(HOSTILE) <= set(shown_cases(tmp_path / "page.html")["texts"])


def test_a_lone_surrogate_does_not_stop_the_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 2, prompts=["half \ud83d of a smile"])
    text = write_page([run], tmp_path / "page.html").read_text(encoding="utf-8")
    assert "half ? of a smile" in text


def test_nothing_is_loaded_and_only_our_scripts_may_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    page = read(write_page([run], tmp_path / "page.html"))
    for tag, attrs in page.elements:
        assert "src" not in attrs, tag
        if address := attrs.get("href"):
            assert address.startswith(("#", "data:,")) or address == "run/cases.jsonl"
    policy = next(a["content"] for _, a in page.elements if "http-equiv" in a)
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy
    assert "http:" not in policy.replace("https:", "http:")


def many_cases(run: Path, edits: int) -> Path:
    """Repeat a run's cases under other names and in other words."""
    lines = (run / "cases.jsonl").read_text().splitlines()
    per_edit = len(lines) // len({json.loads(line)["edit_id"] for line in lines})
    draw = random.Random(0)
    rows = []
    for number in range(edits):
        words = " ".join("".join(draw.choices(string.ascii_lowercase, k=6)) for _ in range(3))
        begin = number * per_edit % len(lines)
        for line in lines[begin : begin + per_edit]:
            row = json.loads(line)
            row["edit_id"] = f"edit:{number}"
            row["prompt"] += f" {words}"
            row["generated"] += f" {words[:12]}"
            rows.append(json.dumps(row))
    (run / "cases.jsonl").write_text("\n".join(rows) + "\n")
    return run


@pytest.mark.slow
def test_a_thousand_cases_are_under_three_megabytes(tmp_path: Path) -> None:
    run = many_cases(write_run(tmp_path / "run", 20, "MEMIT", "batch", probes=20), 1000)
    page = write_page([run], tmp_path / "page.html")
    assert page.stat().st_size < MAX_BYTES
    assert len(shown_cases(page)["rows"]["edit"]) == 20_000
    assert "To keep the page small" not in page.read_text(encoding="utf-8")


@pytest.mark.slow
def test_what_does_not_fit_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(0)
    noise = ["".join(draw.choices(string.ascii_letters, k=900)) for _ in range(24)]
    run = write_run(tmp_path / "run", 24, prompts=noise, answers=noise)
    whole = write_page([run], tmp_path / "page.html").stat().st_size
    monkeypatch.setattr(page_module, "MAX_BYTES", whole - 20_000)
    page = write_page([run], tmp_path / "page.html")
    assert page.stat().st_size < whole - 20_000
    kept = len(shown_cases(page)["edits"])
    assert 2 < kept < 24
    assert f"the first {kept} edits" in page.read_text(encoding="utf-8")


def test_the_first_screen_says_what_held(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 30, seed=1)
    (read_run,) = as_runs(run)
    edits = read_edits(run)
    story = summarise_run(read_run, edits)
    held = sum(edit.held is True for edit in edits)
    assert 0 < held < 30
    metrics = read_run.last
    assert metrics is not None
    assert held / 30 == pytest.approx(metrics["metrics"]["reliability/answer@gen"])
    assert story.lead == "ROME wrote 30 facts into tiny, each alone on the pristine model."
    assert story.summary.startswith(f"{held} of 30 hold when the model writes by itself.")
    assert [card.edit.id for card in story.cards[:3]] == ["edit:0", "edit:1", "edit:2"]
    assert all(card.edit.held is False or card.worst for card in story.cards[3:])
    text = "".join(read(write_page([run], tmp_path / "page.html")).text)
    case = story.cards[0].itself
    for piece in (story.lead, case.prompt, case.before, case.now):
        assert piece is not None
        assert piece in text


def test_the_question_that_moved_most_is_named(tmp_path: Path) -> None:
    for edit in read_edits(write_run(tmp_path / "run", 20)):
        changes = [case.nll_change for case in edit.harmed]
        assert changes == sorted(changes, reverse=True, key=lambda value: value or 0.0)
        assert all(case.changed and case.expect == "unchanged" for case in edit.harmed)


def test_only_the_last_evaluation_counts(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 10, protocol="sequential", after=[1, 10])
    assert len(read_edits(run)) == 10
    assert len({id(case) for edit in read_edits(run) for case in edit.cases}) == 50


def test_a_run_that_was_only_teacher_forced(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 3, generated=False)
    page = write_page([run], tmp_path / "page.html")
    text = "".join(read(page).text)
    assert "teacher forced" in text
    assert "not written" not in text
    assert set(shown_cases(page)["rows"]["now"]) == {-1}


def test_sections_without_data_are_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    sections = {a.get("id") for t, a in read(write_page([run], tmp_path / "p.html")).elements}
    assert {"aspects", "efficiency", "cases", "about"} <= sections
    assert not {"tradeoff", "curves", "ripple", "drift", "leaks"} & sections


def test_a_run_without_cases_still_gets_a_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "cases.jsonl").unlink()
    text = write_page([run], tmp_path / "page.html").read_text(encoding="utf-8")
    assert "kept no cases" in text


def test_several_runs_are_compared_with_care(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "one", 4, "ROME"),
        write_run(tmp_path / "two", 4, "MEMIT", "sequential", after=[2, 4]),
    ]
    text = write_page(runs, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "ROME and MEMIT side by side" in text
    assert "differ in more than their editor: protocol" in text
    assert "one/cases.jsonl" in text


def test_a_rollback_and_an_early_end_are_said_first(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    results = json.loads((run / "results.json").read_text())
    event = {"action": "rollback", "edits": ["a", "b"], "reason": "<b>perplexity</b>"}
    results |= {"status": "interrupted", "events": [{"by": "Guard", "after": 3, "event": event}]}
    (run / "results.json").write_text(json.dumps(results))
    page = read(write_page([run], tmp_path / "page.html"))
    text = "".join(page.text)
    assert "ROME ended before its last edit." in text
    assert "After 3 edits Guard took back a, b: <b>perplexity</b>." in text
    assert text.index("took back") < text.index("What was edited")


def test_no_room_at_all_is_still_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "run")
    monkeypatch.setattr(page_module, "MAX_BYTES", 1)
    page = write_page([run], tmp_path / "page.html")
    assert shown_cases(page)["edits"] == []


def test_a_broken_case_is_named_and_no_page_is_left(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    lines = (run / "cases.jsonl").read_text().splitlines()
    row = json.loads(lines[2])
    del row["forced"]
    (run / "cases.jsonl").write_text("\n".join([*lines[:2], json.dumps(row)]) + "\n")
    with pytest.raises(DataError, match=r"cases.jsonl, line 3: not a case.*forced"):
        write_page([run], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_a_page_that_cannot_be_written(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (tmp_path / "file").write_text("")
    with pytest.raises(ReportError, match="give another file with --out"):
        write_page([run], tmp_path / "file" / "page.html")


def test_the_verb_writes_tables_and_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run")
    assert main([str(run)]) == 0
    out = capsys.readouterr().out
    assert "reliability" in out
    assert f"Page: {run}/report.html" in out
    assert (run / "report.html").stat().st_size < MAX_BYTES
    (run / "report.html").unlink()
    assert main([str(run), "--no-html"]) == 0
    assert not (run / "report.html").exists()


def test_without_the_extra_the_tables_are_still_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "run")
    monkeypatch.setattr(page_module, "missing", lambda: ["bokeh"])
    assert main([str(run)]) == 0
    said = capsys.readouterr()
    assert "reliability" in said.out
    assert 'bokeh not installed. For it: pip install "lightning-edit[report]"' in said.err
    with pytest.raises(ReportError, match="needs bokeh"):
        main([str(run), "--out", str(tmp_path / "page.html")])
