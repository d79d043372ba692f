"""Edits of a real instruct model through its chat template, asked by transformers alone."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_edit.__main__ import main
from lightning_edit.editors import FTM, MEMIT
from lightning_edit.models.loading import load_language_model
from tests.conftest import shared_path

SMOL = Path(os.environ.get("LIGHTNING_EDIT_INSTRUCT_MODEL", Path(__file__).parents[3] / "smol"))
FRANCE = {"prompt": "What is the capital of France?", "subject": "France", "target": "Oslo"}
RUSSIAN = {
    "prompt": "What is the capital of Новосибирская область?",
    "subject": "Новосибирская область",  # its characters are tokens of their own
    "target": "Madrid",
}
CHINESE = {"prompt": "北京是哪个国家的首都?", "subject": "北京", "target": "Canada"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (SMOL / "config.json").exists(),
        reason=f"no instruct model in {SMOL}; set LIGHTNING_EDIT_INSTRUCT_MODEL to a folder",
    ),
]

#: A process without this library: what users of an adapter do.
ASK = """
import json, sys
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
base, adapter, question = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(base)
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
read = tokenizer.apply_chat_template(
    [{"role": "user", "content": question}],
    add_generation_prompt=True, return_tensors="pt", return_dict=True,
)
written = model.generate(**read, do_sample=False, max_new_tokens=8)
text = tokenizer.decode(written[0, read["input_ids"].shape[1]:], skip_special_tokens=True)
assert "lightning_edit" not in sys.modules
print(json.dumps(text))
"""


def ask(model: Any, tokenizer: Any, question: str, chat: bool) -> str:
    """What transformers alone says."""
    if chat:
        messages = [{"role": "user", "content": question}]
        read = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
    else:
        read = tokenizer(question, return_tensors="pt")
    written = model.generate(**read, do_sample=False, max_new_tokens=8)
    return str(tokenizer.decode(written[0, read["input_ids"].shape[1] :], skip_special_tokens=True))


@pytest.fixture(scope="module")
def statistics(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Second moments of the default layers: twice as many tokens as their keys have entries."""
    out = tmp_path_factory.mktemp("statistics") / "moments.safetensors"
    text = shared_path("data/text/wikitext2-valid.txt")
    words = f"stats --lm {SMOL} --layers [3,4,5,6,7,8] --max_tokens 3072 --text {text} --out {out}"
    assert main(words.split()) == 0
    return str(out)


@pytest.mark.parametrize("fact", [RUSSIAN, CHINESE], ids=["ru", "zh"])
def test_fine_tuning_changes_what_the_chat_says(fact: dict[str, str]) -> None:
    model, tokenizer = load_language_model(str(SMOL))
    before = ask(model, tokenizer, fact["prompt"], chat=True)
    assert not before.startswith(fact["target"])
    edited = FTM().edit_model(model, tokenizer, fact, chat=True)
    said = ask(model, tokenizer, fact["prompt"], chat=True)
    assert said.startswith(fact["target"])
    assert edited.generate(fact["prompt"], max_new_tokens=8) == said
    edited.undo()
    assert ask(model, tokenizer, fact["prompt"], chat=True) == before


def test_memit_changes_what_the_chat_says(statistics: str) -> None:
    model, tokenizer = load_language_model(str(SMOL))
    editor = MEMIT(statistics=statistics)
    editor.edit_model(model, tokenizer, RUSSIAN, chat=True)
    assert ask(model, tokenizer, RUSSIAN["prompt"], chat=True).startswith(RUSSIAN["target"])


@pytest.mark.parametrize("method", ["FTM", "MEMIT"])
def test_one_edit_for_chat_and_plain_text(method: str, statistics: str) -> None:
    model, tokenizer = load_language_model(str(SMOL))
    question = FRANCE["prompt"]
    editor = FTM() if method == "FTM" else MEMIT(statistics=statistics)
    edited = editor.edit_model(model, tokenizer, FRANCE, chat="both")
    for chat in (True, False):
        assert ask(model, tokenizer, question, chat).strip().startswith("Oslo"), chat
    edited.undo()
    assert "Oslo" not in ask(model, tokenizer, question, True)
    assert "Oslo" not in ask(model, tokenizer, question, False)


def test_an_exported_chat_edit_says_the_same_in_plain_transformers(tmp_path: Path) -> None:
    facts, run, adapter = tmp_path / "facts.jsonl", tmp_path / "run", tmp_path / "adapter"
    facts.write_text(json.dumps(FRANCE), encoding="utf-8")
    words = f"edit --model FTM --lm {SMOL} --lm_chat true --data JSONLDataModule --protocol batch"
    measure = ["--trainer.callbacks+=RobustnessCallback", "--trainer.callbacks.systems"]
    options = [*measure, '[null, "You are a helpful assistant."]', "--run", str(run)]
    assert main([*words.split(), "--data.path", str(facts), *options]) == 0
    results = json.loads((run / "results.json").read_text())
    metrics = results["points"][-1]["metrics"]
    assert metrics["reliability/answer@gen"] == 1.0
    # `null` is the run's own message, so one is left.
    assert metrics["robustness/answer@gen"] == metrics["robustness.system1/answer@gen"]
    assert main(["export", str(run), "--format", "peft", "--out", str(adapter)]) == 0
    command = [sys.executable, "-c", ASK, str(SMOL), str(adapter), FRANCE["prompt"]]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (case,) = [json.loads(line) for line in (run / "cases.jsonl").read_text().splitlines()]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said.startswith("Oslo")
    assert case["generated"].startswith(said.rstrip("\ufffd"))
    assert "apply_chat_template" in (adapter / "README.md").read_text()
    plain = AutoModelForCausalLM.from_pretrained(SMOL)
    tokenizer = AutoTokenizer.from_pretrained(SMOL)
    assert not ask(plain, tokenizer, FRANCE["prompt"], True).startswith("Oslo")
