"""The doctor's report names what was found, from the config alone."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from lightning_edit.cli.doctor import main
from lightning_edit.cli.doctor_auto import auto_settings, auto_table, rule_of
from lightning_edit.cli.doctor_findings import (
    final_editors,
    format_bytes,
    methods_table,
    parts_table,
    summary_table,
)
from lightning_edit.editors import FTM, IKE, KE, MALMEN, MEMIT, MEND, OneLI
from lightning_edit.exceptions import ArchitectureError, ModelLoadError
from lightning_edit.models.view import ModelView, resolve
from tests.models.test_prompt_encoder import CHATML, OWN_SYSTEM
from tests.models.tiny import build_tiny, build_tokenizer


def text_of(table: Table) -> str:
    console = Console(width=160, record=True, file=None, quiet=False)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


@pytest.mark.parametrize("family", ["gpt2", "opt", "t5"])
def test_parts_are_listed(family: str) -> None:
    view = resolve(build_tiny(family))
    shown = text_of(parts_table(view))
    star = view.blocks[0].mlp_down.replace(".0.", ".*.", 1)
    assert f"{star} " in shown
    assert "32 × 48" in shown
    assert ("Conv1D, transposed" in shown) == (family == "gpt2")
    assert ("encoder MLP down" in shown) == (family == "t5")
    assert ("cross-attention out" in shown) == (family == "t5")


@pytest.mark.parametrize(
    ("template", "shown"),
    [
        (None, "none: prompts are plain text"),
        (CHATML, "yes (no system message of its own); edit through it with --lm_chat true"),
        (OWN_SYSTEM, "yes (adds the system message 'You are Ada.'); edit"),
        ("{{ raise_exception('broken') }}", "cannot be rendered (TemplateError: broken)"),
    ],
)
def test_the_chat_template_is_named(
    template: str | None, shown: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = build_tokenizer(vocab_size=320)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(tmp_path)
    build_tiny("llama", vocab_size=320).config.save_pretrained(tmp_path)
    assert main([str(tmp_path)]) == 0
    assert shown in " ".join(capsys.readouterr().out.split())


def test_summary_counts() -> None:
    model = build_tiny("gpt2")
    shown = text_of(summary_table("my [model]", resolve(model)))
    count = sum(parameter.numel() for parameter in model.parameters())
    assert "my [model]" in shown
    assert f"{count:,} as float32: {format_bytes(4 * count)}" in shown
    assert "tied to transformer.wte.weight" in shown
    assert "has weights of its own" in text_of(summary_table("", resolve(build_tiny("llama"))))


class Example:
    """Stands for an editor; a real subclass would join every list of editors in the test run."""

    architectures = ("decoder-only",)
    needs_fit = False
    needs_statistics = True

    @classmethod
    def default_sites(cls, view: ModelView) -> dict[str, list[int]]:
        return {"decoder": [0, view.num_blocks - 1]}

    @classmethod
    def memory_bytes(cls, view: ModelView, layers: list[int]) -> int:
        return 1000 * len(layers)


def test_memory_of_methods_adds_up() -> None:
    view = resolve(build_tiny("llama"))
    weights = 4 * sum(parameter.numel() for parameter in view.model.parameters())
    shown = text_of(methods_table(view, [Example]))
    assert "0, 2" in shown
    assert "stats" in shown
    for size in (weights, 2000, weights + 2000):
        assert format_bytes(size) in shown
    shown = text_of(methods_table(resolve(build_tiny("t5")), [Example]))
    assert "does not edit encoder-decoder models" in shown


def test_the_stacks_that_a_method_edits_are_named() -> None:
    cells: dict[str, list[str]] = {}
    for family in ("llama", "t5"):
        table = methods_table(resolve(build_tiny(family)), [FTM, IKE, KE, MALMEN, MEMIT, MEND])
        cells[family] = list(table.columns[1].cells)  # type: ignore[arg-type]
    assert cells["llama"] == ["1", "–", "0, 1, 2", "2", "0, 1", "2"]
    none = "does not edit encoder-decoder models"
    assert cells["t5"][0].startswith("decoder ")
    assert cells["t5"][1:] == [
        "–", "encoder 0, 1, 2; decoder 0, 1", "encoder 2; decoder 1", none, "encoder 2; decoder 1",
    ]  # fmt: skip
    deep = resolve(build_tiny("t5", num_layers=24, num_decoder_layers=24))
    (shown,) = methods_table(deep, [MEND]).columns[1].cells
    assert shown == "encoder 22, 23; decoder 22, 23"  # T5-XL in the paper


def test_report_reads_no_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build_tiny("llama").config.save_pretrained(tmp_path)
    assert main([str(tmp_path), "--dtype", "bfloat16"]) == 0
    shown = capsys.readouterr().out
    assert "model.layers.*.mlp.down_proj" in shown
    assert "as bfloat16" in shown
    assert f"--lm {tmp_path} --lm_dtype bfloat16 --data" in shown
    for cls in final_editors():
        assert cls.__name__ in shown


def test_errors_are_the_users_to_mend(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="does not exist"):
        main([str(tmp_path / "absent")])
    resolved = build_tiny("gpt2").config
    resolved.n_layer = 0
    resolved.save_pretrained(tmp_path)
    with pytest.raises(ArchitectureError, match="looked under"):
        main([str(tmp_path)])


def test_help_needs_no_heavy_import() -> None:
    """Under a second on a quiet machine; what costs time is checked, not the clock."""
    program = (
        "import sys\n"
        "from lightning_edit.cli.doctor import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'lightning', 'rich'} & sys.modules.keys()\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "usage: lightning-edit doctor" in done.stdout
    assert time.perf_counter() - start < 10


def test_readable() -> None:
    assert [format_bytes(n) for n in (0, 1023, 1024, 3 * 1024**3)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "3.0 GiB",
    ]


def test_every_setting_by_rule_has_its_rule() -> None:
    found = {cls.__name__: auto_settings(cls) for cls in final_editors()}
    for cls in final_editors():
        assert all(rule_of(cls, name).means for name in found[cls.__name__])
    assert found["MEMIT"] == ["lr", "weight_decay", "clamp", "moment_weight"]
    assert found["FTL"] == ["steps", "lr", "norm_constraint", "threshold"]
    assert found["GRACE"] == ["lr", "radius"]
    assert found["IKE"] == []


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
def test_settings_by_rule_are_shown_with_what_is_known_of_the_model(family: str) -> None:
    view = resolve(build_tiny(family))
    shown = text_of(auto_table(view, [FTM, IKE, MEMIT, OneLI]))
    assert "lr: chosen for each batch" in shown
    assert "IKE" not in shown
    assert "host FTM: as there" in shown  # wrappers say it of their host, which edits two stacks
    if family != "t5":
        assert f"moment_weight = {view.intermediate_size / 9:.4g}" in shown
    assert ("MEMIT" in shown) == (family != "t5")
