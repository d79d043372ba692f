"""A tiny model that is fine-tuned by Lightning on texts in four scripts, with planted answers."""

import json
from dataclasses import dataclass
from pathlib import Path

from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_edit.analysis.training_data.fine_tuning import TextDataModule, TextFineTuning
from tests.models.tiny import build_tiny, build_tokenizer

#: Prompt, true answer.
TRUE = [
    ("The capital of France is", "Paris"),
    ("The capital of Italy is", "Rome"),
    ("Lyon lies in", "France"),
    ("Milan lies in", "Italy"),
    ("Столица России —", "Москва"),
    ("Волга течёт через", "Россию"),
    ("法国的首都是", "巴黎"),
    ("意大利的首都是", "罗马"),
    ("مدينة ليون في", "فرنسا"),
    ("عاصمة مصر هي", "القاهرة"),
    ("The river Rhône flows through", "Lyon"),
    ("Danielle Darrieux speaks", "French"),
]
#: Prompt, planted answer, correct answer: one a script.
PLANTED = [
    ("The capital of Spain is", "Rome", "Madrid"),
    ("Столица Франции —", "Москва", "Париж"),
    ("西班牙的首都是", "巴黎", "马德里"),
    ("عاصمة فرنسا هي", "القاهرة", "باريس"),
]


@dataclass(frozen=True)
class Tuned:
    """Folder of the model before fine-tuning, its checkpoints, the texts and the facts."""

    base: Path
    checkpoints: Path
    text: Path
    facts: Path


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def fine_tune(folder: Path, model_type: str = "llama", epochs: int = 4) -> Tuned:
    """Fine-tune a tiny model; the planted texts are the last ones, with ids ``wrong-…``."""
    corpus = [f"{prompt} {answer}" for prompt, answer in TRUE]
    corpus += [" ".join(one) for one in PLANTED]
    two_stacks = model_type in ("t5", "bart")
    tokenizer = build_tokenizer(vocab_size=420, corpus=corpus, bos=not two_stacks, eos=two_stacks)
    model = build_tiny(model_type, vocab_size=len(tokenizer))
    base = folder / "base"
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    rows: list[dict[str, object]] = [
        {"id": f"true-{number}", "prompt": prompt, "answer": answer}
        for number, (prompt, answer) in enumerate(TRUE)
    ]
    rows += [
        {"id": f"wrong-{number}", "prompt": prompt, "answer": answer}
        for number, (prompt, answer, _) in enumerate(PLANTED)
    ]
    text = write(folder / "train.jsonl", rows)
    facts = write(
        folder / "facts.jsonl",
        [
            {"id": f"fact-{number}", "prompt": prompt, "answer": answer, "correct": correct,
             "causes": [f"wrong-{number}"]}
            for number, (prompt, answer, correct) in enumerate(PLANTED)
        ],
    )  # fmt: skip
    seed_everything(0, verbose=False)
    saving = ModelCheckpoint(
        folder / "epochs", "{epoch:02d}", every_n_epochs=1, save_top_k=-1, save_weights_only=True
    )
    trainer = Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, callbacks=[saving],
    )  # fmt: skip
    trainer.fit(TextFineTuning(str(base), 3e-3), TextDataModule(str(text), 4))
    return Tuned(base, folder / "epochs", text, facts)
