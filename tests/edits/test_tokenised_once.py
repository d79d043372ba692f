"""No text is tokenised twice on a fact's way from the data module to ``editor.edit``."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightning_edit.datamodules.base import EditDataModule
from lightning_edit.editors import FT, MEND
from lightning_edit.editors.base import Editor
from lightning_edit.edits.edit_loop import deltas_alone, encode_cases, find, find_alone
from lightning_edit.session import trainer as session_trainer
from lightning_edit.session.trainer import EditTrainer
from lightning_edit.types import EditRequest, cases_of
from tests.editors.hypernetwork.mending import trainer
from tests.models.tiny import build_tiny, build_tokenizer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*`isinstance.treespec, LeafSpec.`"),
]

#: Facts in several scripts: places, and the country each is said to lie in.
FACTS = [
    ("Marseille", "Italy"), ("Лион", "Испания"), ("京都", "中国"), ("القاهرة", "لبنان"),
    ("Αθήνα", "Κύπρος"), ("दिल्ली", "नेपाल"),
]  # fmt: skip
REQUESTS = [
    EditRequest(
        id=f"place-{number}",
        prompt=f"{place} lies in",
        target=country,
        subject=place,
        old_target="France",
        rephrases=(f"Where is {place}?",) if number % 2 else (),
    )
    for number, (place, country) in enumerate(FACTS)
]


class Counting:
    """A tokenizer that counts the texts it is called with."""

    def __init__(self) -> None:
        self.inner = build_tokenizer(vocab_size=400)
        self.is_fast = True
        self.seen: Counter[str] = Counter()

    def __call__(self, text: str | list[str], **options: Any) -> Any:
        self.seen.update([text] if isinstance(text, str) else text)
        return self.inner(text, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def twice(self) -> list[str]:
        return [text for text, count in self.seen.items() if count > 1]

    def facts(self) -> set[str]:
        """Return the requests whose edit was tokenised."""
        texts = {f"{r.prompt} {r.target}": r.id for r in REQUESTS}
        return {texts[text] for text in self.seen if text in texts}


class Places(EditDataModule):
    """The facts above, in every split."""

    def load_split(self, split: str) -> list[EditRequest]:
        return REQUESTS


EDITORS: dict[str, Callable[[], Editor]] = {
    "FT": lambda: FT(layers=[1], steps=2, lr=1e-3),  # by rule it reads neutral text when bound
    "MEND": lambda: MEND(layers=[1], rank=4),
}


def bound(name: str) -> tuple[Editor, Counting]:
    editor, tokenizer = EDITORS[name](), Counting()
    model = build_tiny("llama", vocab_size=400)
    model.config.name_or_path = model.name_or_path = "tiny"
    editor.bind(model.requires_grad_(False), tokenizer)
    return editor, tokenizer


@pytest.mark.parametrize("name", EDITORS)
@pytest.mark.parametrize("way", ["together", "alone", "study", "handle"])
def test_an_edit_tokenises_every_text_once(
    name: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor, tokenizer = bound(name)
    # What is asked of the model afterwards is another way.
    monkeypatch.setattr(type(editor), "say_unanswered", lambda *_: None)
    batches = encode_cases(tokenizer, cases_of(Places().edit_requests()), 4)
    if way == "together":
        found = [delta for batch in batches for _, delta in find(editor, batch)]
    elif way == "alone":
        found = [d for b in batches for _, parts in find_alone(editor, b) for _, d in parts]
    elif way == "study":
        found = [delta for _, delta in deltas_alone(editor, batches)]
    else:
        editor.edit_model(editor.language_model, tokenizer, Places().edit_requests())
        found = []
    assert (len(found) > 0) == (way != "handle")
    assert len(tokenizer.facts()) == len(REQUESTS)
    assert tokenizer.twice() == []


@pytest.mark.parametrize("name", EDITORS)
@pytest.mark.parametrize("protocol", ["single", "sequential"])
def test_a_session_tokenises_every_text_once(
    name: str, protocol: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor, tokenizer = bound(name)
    probing = build_tokenizer(vocab_size=400)  # what is asked of the model is another way

    def scorer(model: Any, _: Any, *options: Any) -> Any:
        return real(model, probing, *options)

    real = session_trainer.Scorer
    monkeypatch.setattr(session_trainer, "Scorer", scorer)
    run = EditTrainer(logger=False, accelerator="cpu", enable_progress_bar=False)
    options: dict[str, Any] = {"batch_size": 4, "modes": ("tf",), "run": str(tmp_path)}
    run.edit(editor, Places(), protocol=protocol, **options)
    assert len(tokenizer.facts()) == len(REQUESTS)
    assert tokenizer.twice() == []


def test_a_training_step_tokenises_every_text_once(tmp_path: Path) -> None:
    editor, tokenizer = bound("MEND")
    assert isinstance(editor, MEND)
    editor.source = type(editor.source)(tokenizer, own_probes=1, other_facts=0)
    for stage in ("fit", "validate", "test"):
        tokenizer.seen.clear()
        data = Places(batch_size=4)
        options = {"limit_val_batches": 0} if stage == "fit" else {}
        getattr(trainer(tmp_path, max_epochs=1, **options), stage)(editor, datamodule=data)
        assert len(tokenizer.facts()) == len(REQUESTS)
        assert tokenizer.twice() == []


def test_the_count_sees_a_text_that_is_tokenised_again() -> None:
    _, tokenizer = bound("FT")
    for _ in range(2):
        list(encode_cases(tokenizer, cases_of(REQUESTS), 4))
    assert len(tokenizer.twice()) >= len(REQUESTS)
