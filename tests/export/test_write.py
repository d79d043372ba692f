"""Exports are whole or not there, say what they hold, and cost nothing to ask about."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from lightning_edit.cli.export import main
from lightning_edit.cli.undo import main as undo
from lightning_edit.editors import FTM
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.edits.ledger import Ledger
from lightning_edit.exceptions import ExportError
from lightning_edit.export.card import escape_cell
from lightning_edit.export.write import export
from lightning_edit.models.loading import load_language_model
from lightning_edit.models.prompt_encoder import PromptEncoder
from lightning_edit.models.prompt_format import PromptFormat
from lightning_edit.models.weights import weights_hash
from lightning_edit.session.describe import describe_for_journal
from lightning_edit.types import EditRequest
from tests.disks import file_size_limit
from tests.export.runs import several, start
from tests.models.test_chat_template import DEEPSEEK_R1, GPT_OSS, QWEN3
from tests.models.test_prompt_encoder import CHATML, chat_tokenizer
from tests.models.tiny import build_tiny

# peft 0.21 asks transformers 5.23 for an attribute under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


def test_what_stands_in_the_way_is_kept(tmp_path: Path) -> None:
    run = several(start(tmp_path, "gpt2"))
    out = export(run.path, "delta").path
    before = (out / "delta.safetensors").read_bytes()
    with pytest.raises(ExportError, match="add --overwrite"):
        export(run.path, "delta")
    with pytest.raises(ExportError, match="was not made by"):
        export(run.path, "delta", out=run.base, overwrite=True)
    with pytest.raises(ExportError, match="is a file"):
        export(run.path, "delta", out=run.base / "config.json", overwrite=True)
    with file_size_limit(2000), pytest.raises(ExportError, match="no space is left"):
        export(run.path, "delta", overwrite=True)
    assert (out / "delta.safetensors").read_bytes() == before
    undo([str(run.path), "--ids", "b"])
    export(run.path, "delta", overwrite=True)
    assert (out / "delta.safetensors").read_bytes() != before
    assert [path.name for path in out.parent.iterdir()] == ["delta"]


@pytest.mark.parametrize("kind", ["peft", "merged"])
def test_a_full_disk_leaves_nothing_behind(kind: Literal["peft", "merged"], tmp_path: Path) -> None:
    run = several(start(tmp_path, "gpt2"))
    with (
        file_size_limit(1500),
        pytest.raises(ExportError, match=r"no space is left\. Nothing was left there; free space"),
    ):
        export(run.path, kind, out=tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "run"]


def test_the_card_shows_the_requests_and_no_markup_of_theirs(tmp_path: Path) -> None:
    run = several(start(tmp_path, "gpt2"))
    text = (export(run.path, "peft", ids=["a"]).path / "README.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| a "))
    assert row == r"| a | The \| capital of &lt;b&gt;a&lt;/b&gt; is | Rome | \*Paris\* |"
    assert weights_hash(run.fresh()) in text
    assert 'PeftModel.from_pretrained(base_model, "peft")' in text
    # Transformers alone would take the type that the weights are stored in.
    assert f'from_pretrained("{run.base}", dtype="float32")' in text
    assert "from its thought on" not in text
    assert "picked out of a longer run" in text
    assert escape_cell("a`b`\n# c") == r"a\`b\` \# c"


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from lightning_edit.cli.export import build_parser; build_parser();"
        "print([m for m in ('torch', 'peft', 'transformers', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_options_that_do_not_go_together(capsys: pytest.CaptureFixture[str]) -> None:
    for options in (["--format", "delta", "--max_rank", "2"], ["--max_rank", "0"]):
        with pytest.raises(SystemExit):
            main(["run", *options])
    assert "expected a whole number of 1 or more" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "template"),
    [
        ("peft", CHATML),
        ("merged", CHATML),
        ("merged", QWEN3),  # thinks unless it is told not to
        ("merged", DEEPSEEK_R1),  # opens a thought
        ("merged", GPT_OSS),  # leaves the name of a channel to the model
    ],
)
def test_the_card_of_a_chat_edit_asks_through_the_template(
    kind: Literal["peft", "merged"],
    template: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = tmp_path / "base"
    build_tiny("llama", vocab_size=320, max_position_embeddings=256).save_pretrained(base)
    chat_tokenizer(template).save_pretrained(base)
    form = PromptFormat(True, 'Say "```" never.')
    model, tokenizer = load_language_model(str(base))
    editor = FTM(layers=[1], lr=1e-2).bind(model, PromptEncoder(tokenizer, form))
    fact = EditRequest("a", "What is the capital of France?", "Lyon")
    ledger = Ledger(model, editor, tmp_path / "run" / "ledger")
    facts = describe_for_journal(model, editor.prompts)
    ledger.open(editor="FTM", language_model=facts, protocol="sequential")
    ledger.commit(editor.edit(encode_batch(editor.prompts, [fact])), [fact])
    said = editor.continuations([fact.prompt], 16, ledger.in_force)[0]
    out = export(tmp_path / "run", kind, out=tmp_path / "out", max_rank=None).path
    card = (out / "README.md").read_text()
    assert "- prompts: chat template, system message" in card
    # The example of the card, word for word, in plain transformers and peft.
    (code,) = re.findall(r"^```python\n(.*?)^```", card, re.M | re.S)
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.rstrip("\n") == said != ""
    assert "lightning_edit" not in code


def test_the_card_of_plain_edits_says_so(tmp_path: Path) -> None:
    run = several(start(tmp_path, "gpt2"))
    text = (export(run.path, "delta").path / "README.md").read_text()
    assert "- prompts: plain text" in text
    assert "chat" not in text
