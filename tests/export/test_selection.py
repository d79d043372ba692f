"""Which edits of a run are exported."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from lightning_edit.cli.export import main
from lightning_edit.cli.undo import main as undo
from lightning_edit.edits.delta import Delta
from lightning_edit.exceptions import ExportError, LedgerError
from lightning_edit.export.write import export
from tests.export.runs import commit, load_adapter, request, several, start, update

# peft 0.21 asks transformers 5.23 for an attribute under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


class Installs:
    """A runtime that takes whatever it is given."""

    def install(self, in_force: Sequence[Delta]) -> None:
        pass


def test_edits_that_act_at_run_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = start(tmp_path, "gpt2")
    run.ledger.runtime = Installs()
    for name in "ab":
        state = {"keys": torch.ones(2), f"own-{name}": torch.zeros(1)}
        run.ledger.commit(Delta((name,), state=state, prompts={name: "Imagine"}), [request(name)])
    for name in ("peft", "merged", "delta"):
        assert main([str(run.path), "--format", name, "--ids", "a"]) == 2
        said = capsys.readouterr().err
        assert f"acts at run time (it holds keys, own-a, prompts), which --format {name}" in said
        assert "use --format runtime" in said
        assert not (run.path / "export").exists()
    with pytest.raises(ExportError, match=r"keeps no editor that acts at run time.*warned"):
        export(run.path, "runtime")


def test_an_undo_is_not_exported(tmp_path: Path) -> None:
    run = several(start(tmp_path, "gpt2"))
    assert undo([str(run.path), "--ids", "b", "e"]) == 0
    # The journal has the undo already; only the model in hand follows.
    run.ledger.journal = None
    run.ledger.undo(["b"])
    run.ledger.undo(["e"])
    adapter = load_adapter(run, export(run.path, "peft").path)
    torch.testing.assert_close(run.logits(adapter), run.logits(), rtol=0, atol=1e-5)
    assert undo([str(run.path), "--all"]) == 0
    with pytest.raises(ExportError, match="every edit was undone; export one with --ids ID"):
        export(run.path, "peft", overwrite=True)


def test_one_edit_of_a_single_protocol_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = start(tmp_path, "llama", protocol="single")
    for number in range(3):
        commit(run, f"e{number}", update(run, number, 1, number))
        run.ledger.undo([f"e{number}"])
    assert main([str(run.path)]) == 2
    message = "protocol single restores the model after each edit; export one with --ids ID"
    assert message in capsys.readouterr().err
    assert main([str(run.path), "--ids", "e1"]) == 0
    assert "1 edit," in capsys.readouterr().out
    commit(run, "again", update(run, 1, 1, 1))
    adapter = load_adapter(run, run.path / "export/peft")
    torch.testing.assert_close(run.logits(adapter), run.logits(), rtol=0, atol=1e-5)
    assert main([str(run.path), "--ids", "e9", "--overwrite"]) == 2
    assert "no edit called 'e9'; it made: e0, e1, e2" in capsys.readouterr().err


def test_edits_of_one_batch_are_exported_together(tmp_path: Path) -> None:
    run = several(start(tmp_path, "gpt2"))
    with pytest.raises(ExportError, match="c was solved together with d; export the whole batch"):
        export(run.path, "delta", ids=["c"])
    assert export(run.path, "delta", ids=["d", "c"]).edits == 2


def test_a_run_without_edits_and_no_run(tmp_path: Path) -> None:
    run = start(tmp_path, "gpt2")
    with pytest.raises(ExportError, match="has no edit yet"):
        export(run.path, "peft")
    with pytest.raises(ExportError, match="give the folder that `lightning-edit edit` wrote"):
        export(tmp_path / "nowhere", "peft")


def test_a_tampered_delta_is_not_exported(tmp_path: Path) -> None:
    run = several(start(tmp_path, "gpt2"))
    path = run.path / "ledger" / "000001.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(LedgerError, match="SHA-256 differs"):
        export(run.path, "merged")
    assert not (run.path / "export").exists()
