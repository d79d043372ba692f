"""A pass that is cut off goes on with the same bits."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_edit.cli.stats import main
from lightning_edit.exceptions import DataError, StatisticsWriteError
from lightning_edit.statistics.collect import collect
from lightning_edit.statistics.moments import Moments
from lightning_edit.statistics.partial import PartialSums
from lightning_edit.statistics.windows import Position
from tests.models.tiny import CORPUS, TINY, build_tokenizer

pytestmark = pytest.mark.bits

Progress = Callable[[Position], None] | None
ROOT = Path(__file__).parents[2]
#: More than a window of documents.
TEXTS = [f"{CORPUS[number % 5]} {number}" for number in range(700)]


class SavedAlways(PartialSums):
    """Saves after every pass, however long that takes."""

    save_when_due = PartialSums.save


class Cut(Exception):  # noqa: N818  # no error of anybody's
    """Stands for a kill between two passes."""


def cut_after(passes: int) -> Callable[[Position], None]:
    def progress(position: Position) -> None:
        if position.passes == passes:
            raise Cut

    return progress


def run(
    partial: PartialSums | None, texts: list[str] = TEXTS, progress: Progress = None
) -> Moments:
    return collect(
        TINY["gpt2"](),
        build_tokenizer(),
        texts,
        [0, 2],
        max_tokens=14000,
        batch_tokens=1024,
        progress=progress,
        partial=partial,
    )


def same_bits(first: Moments, second: Moments) -> bool:
    assert (first.matrices.keys(), first.tokens) == (second.matrices.keys(), second.tokens)
    return all(torch.equal(first.matrices[name], second.matrices[name]) for name in first.matrices)


def test_any_number_of_cuts_changes_no_bit(tmp_path: Path) -> None:
    path = tmp_path / "sums.safetensors"
    whole = run(None)
    last: list[int] = []
    run(None, progress=lambda position: last.append(position.passes))
    assert last == list(range(1, len(last) + 1))
    # In the first window, at its end, and in the second.
    for passes in (2, 5, len(last) - 1):
        with pytest.raises(Cut):
            run(SavedAlways(path), progress=cut_after(passes))
    begun: list[int] = []
    resumed = run(SavedAlways(path), progress=lambda position: begun.append(position.passes))
    assert begun == [len(last)]
    assert same_bits(resumed, whole)
    assert resumed.corpus == whole.corpus


def test_sums_are_saved_when_it_is_time(tmp_path: Path) -> None:
    path = tmp_path / "sums.safetensors"
    with pytest.raises(Cut):
        run(PartialSums(path, 3600.0), progress=cut_after(3))
    assert not path.exists()
    with pytest.raises(Cut):
        run(PartialSums(path, 0.0), progress=cut_after(3))
    assert path.exists()


def test_another_text_is_not_added_to_the_sums(tmp_path: Path) -> None:
    path = tmp_path / "sums.safetensors"
    passes: list[int] = []
    run(None, progress=lambda position: passes.append(position.passes))
    with pytest.raises(Cut):
        run(SavedAlways(path), progress=cut_after(len(passes) - 1))
    with pytest.raises(DataError, match=r"not those of the interrupted pass.*--restart"):
        run(SavedAlways(path), ["Other words", *TEXTS[1:]])


def test_a_broken_file_is_not_trusted(tmp_path: Path) -> None:
    path = tmp_path / "sums.safetensors"
    path.write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00 half")
    with pytest.raises(DataError, match="delete it to begin anew"):
        run(SavedAlways(path))
    Moments({"a": torch.eye(2)}, 3, "m", "c").save(path)
    with pytest.raises(DataError, match="holds no sums of a pass"):
        run(SavedAlways(path))


def test_a_refusing_disk_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StatisticsWriteError, match="LIGHTNING_EDIT_CACHE"):
        run(SavedAlways(tmp_path / "file" / "sums.safetensors"))


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    TINY["gpt2"]().save_pretrained(tmp_path / "lm")
    build_tokenizer().save_pretrained(tmp_path / "lm")
    (tmp_path / "text.txt").write_text("\n".join(TEXTS * 20))
    return [
        *("--lm", str(tmp_path / "lm"), "--text", str(tmp_path / "text.txt")),
        *("--save_every", "0", "--batch_tokens", "512", "--out", str(tmp_path / "out.safetensors")),
    ]


def unfinished(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache" / "statistics" / "unfinished").glob("*.safetensors"))


def test_ctrl_c_ends_after_a_save_and_says_how_to_go_on(
    tmp_path: Path,
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save = PartialSums.save

    def interrupted(self: PartialSums, *given: Any) -> None:
        save(self, *given)
        signal.raise_signal(signal.SIGINT)

    few = [*arguments, "--max_tokens", "5000"]
    monkeypatch.setattr(PartialSums, "save", interrupted)
    assert main([*few, "--restart"]) == 130
    told = capsys.readouterr().err
    assert "go on where it ended with\n  lightning-edit stats --lm" in told
    assert "--restart" not in told
    assert len(unfinished(tmp_path)) == 1
    monkeypatch.setattr(PartialSums, "save", save)
    assert main(few) == 0
    assert not unfinished(tmp_path)
    resumed = Moments.load(tmp_path / "out.safetensors")
    assert main([*few, "--restart"]) == 0
    assert same_bits(resumed, Moments.load(tmp_path / "out.safetensors"))


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_same_command(tmp_path: Path, arguments: list[str]) -> None:
    command = [sys.executable, "-m", "lightning_edit", "stats", *arguments]
    process = subprocess.Popen(command, cwd=ROOT)
    for _ in _until(lambda: bool(unfinished(tmp_path))):
        assert process.poll() is None, "the run ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "out.safetensors").exists()
    assert len(unfinished(tmp_path)) == 1
    assert main(arguments) == 0
    resumed = Moments.load(tmp_path / "out.safetensors")
    assert main([*arguments, "--restart"]) == 0
    assert same_bits(resumed, Moments.load(tmp_path / "out.safetensors"))


def _until(done: Callable[[], bool], seconds: float = 120.0) -> Iterator[None]:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        yield
        time.sleep(0.005)
