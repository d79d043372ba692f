"""A real Gemma 3, whose MLPs end in a norm: facts in several scripts are written, shipped, undone.

What decides is what transformers alone generates, not what the library reads.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import lightning_edit.editors as editors
from lightning_edit.__main__ import main
from lightning_edit.models.loading import load_language_model
from lightning_edit.models.weights import weights_hash
from tests.conftest import shared_path

ROOT = Path(__file__).parents[2]
GEMMA = Path(os.environ.get("LIGHTNING_EDIT_GEMMA", ROOT / "runs/real-model/gemma-3-270m"))
FACTS = [
    {"prompt": "The capital of Norway is", "subject": "Norway", "target": "Bergen"},
    {"prompt": "The mother tongue of Danielle Darrieux is", "subject": "Danielle Darrieux",
     "target": "English"},
    {"prompt": "Столица Франции — город", "subject": "Франции", "target": "Лион"},
    {"prompt": "東京タワーがある都市は", "subject": "東京タワー", "target": "大阪"},
]  # fmt: skip
#: Methods, and how many of the facts they write at once by their defaults.
METHODS = {"MEMIT": 4, "AlphaEdit": 4, "FTM": 4, "UltraEdit": 4, "GRACE": 4}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (GEMMA / "config.json").exists(),
        reason=f"no Gemma 3 in {GEMMA}; make second-real-model, or set LIGHTNING_EDIT_GEMMA",
    ),
]


@pytest.fixture(scope="module")
def gemma() -> tuple[Any, Any]:
    return load_language_model(str(GEMMA))


@pytest.fixture(scope="module")
def statistics(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Second moments of the layers that MEMIT and AlphaEdit edit by default."""
    out = tmp_path_factory.mktemp("statistics") / "moments.safetensors"
    text, layers = shared_path("data/text/wikitext2-valid.txt"), editors.MEMIT.default_layers(18)
    listed = json.dumps(layers).replace(" ", "")
    words = f"stats --lm {GEMMA} --quick --layers {listed} --text {text} --out {out}"
    assert main(words.split()) == 0
    return str(out)


def says(model: Any, tokenizer: Any, prompt: str) -> str:
    """What transformers alone says."""
    read = tokenizer(prompt, return_tensors="pt")
    written = model.generate(**read, do_sample=False, max_new_tokens=6)
    text: str = tokenizer.decode(written[0, read["input_ids"].shape[1] :])
    return text.strip()


@pytest.mark.parametrize("method", METHODS)
def test_facts_in_other_scripts_are_written(
    method: str, gemma: tuple[Any, Any], statistics: str, caplog: pytest.LogCaptureFixture
) -> None:
    model, tokenizer = gemma
    before = weights_hash(model)
    kind = getattr(editors, method)
    editor = kind(statistics=statistics) if kind.needs_statistics else kind()
    edited = editor.edit_model(model, tokenizer, FACTS)
    answers = {fact["target"]: says(model, tokenizer, fact["prompt"]) for fact in FACTS}
    right = [text.startswith(target) for target, text in answers.items()]
    assert sum(right) >= METHODS[method], answers
    # The library says so itself where an answer is not written.
    warned = [message for message in caplog.messages if "are in force, but" in message]
    assert bool(warned) == (not all(right)), (warned, answers)
    edited.undo()
    assert weights_hash(model) == before


# peft 0.21 asks an attribute that transformers 5.23 has renamed.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_an_exported_edit_is_read_by_transformers_alone(tmp_path: Path) -> None:
    facts, run, adapter = tmp_path / "facts.jsonl", tmp_path / "run", tmp_path / "adapter"
    facts.write_text("\n".join(map(json.dumps, FACTS)), encoding="utf-8")
    words = f"edit --model FTM --lm {GEMMA} --data JSONLDataModule --protocol batch --run {run}"
    assert main([*words.split(), "--data.path", str(facts)]) == 0
    assert main(["export", str(run), "--format", "peft", "--out", str(adapter)]) == 0
    plain = AutoModelForCausalLM.from_pretrained(GEMMA)
    shipped = PeftModel.from_pretrained(plain, str(adapter))
    own = AutoTokenizer.from_pretrained(GEMMA)
    for fact in FACTS:
        assert says(shipped, own, fact["prompt"]).startswith(fact["target"]), fact
