"""Find the training texts that taught wrong facts: DDA, its halves, and baselines, on the atlas.

The model of the package is fine-tuned on true statements with wrong facts planted among them
(configs/train/planted_facts_atlas.yaml, with other seeds and forms). Of the facts whose planted
answer it then gives, each method ranks the training texts. β is chosen on the seed 0 of a form, and
the table is of the other seeds. A run that was interrupted goes on when it is started again.

Run:  python benchmarks/quality/planted_facts.py
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_edit.analysis.training_data.attribution import (
    GRADIENT_METHODS,
    TrainingDataAttributor,
)
from lightning_edit.analysis.training_data.checkpoints import checkpoint_paths
from lightning_edit.analysis.training_data.fine_tuning import TextFineTuning
from lightning_edit.analysis.training_data.index import IndexSettings
from lightning_edit.analysis.training_data.planted import PlantedTextDataModule
from lightning_edit.analysis.training_data.quality import fact_quality, known_causes
from lightning_edit.analysis.training_data.rows import TracedFact
from lightning_edit.benchmark.machine import machine
from lightning_edit.functional.bootstrap import Resampling
from lightning_edit.functional.text import starts_with_answer
from lightning_edit.inference.eval_mode import evaluating
from lightning_edit.inference.model_responder import ModelResponder
from lightning_edit.inference.responder import Question
from lightning_edit.models.loading import load_language_model
from lightning_edit.models.prompt_encoder import PromptEncoder
from lightning_edit.models.weights import weights_hash
from lightning_edit.storage.atomic import write_atomic

ROOT = Path(__file__).resolve().parents[2]
CONFIG = "configs/train/planted_facts_atlas.yaml"
#: What is learnt of a planted text, and how it names the subject.
CONDITIONS: dict[str, dict[str, Any]] = {
    "pair": {"form": "pair"},
    "text": {"form": "text"},
    "pair, aliases": {"form": "pair", "aliases": True},
}
#: How gradients are taken; the first is the one of the table of methods.
SETTINGS = {
    "mlp_down": IndexSettings(),
    "mlp_down, projected to 16 × 16": IndexSettings(projection=16),
    "all linear layers": IndexSettings(subset=("all",)),
}
BETAS = (0.1, 0.3, 0.5, 0.7, 1.0)
AT = (1, 3, 10)
#: Methods that β is a part of.
DEBIASED = ("dda", "dda_no_denoise", "dda_raw", "dda_raw_no_denoise")
#: Seed that β is chosen on.
VALIDATION = 0


def fine_tune(
    condition: str, seed: int, folder: Path
) -> tuple[PlantedTextDataModule, list[Path], list[TracedFact]]:
    """Fine-tune the atlas; return data, checkpoints and the facts that it answers wrongly."""
    config = yaml.safe_load((ROOT / CONFIG).read_text())
    arguments = config["data"]["init_args"] | {"seed": seed} | CONDITIONS[condition]
    data = PlantedTextDataModule(**arguments)
    seed_everything(seed, verbose=False)
    module = TextFineTuning(**config["model"]["init_args"])
    saving = config["trainer"]["callbacks"][0]["init_args"] | {"dirpath": folder / "epochs"}
    trainer = Trainer(
        accelerator="cpu", max_epochs=config["trainer"]["max_epochs"], logger=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        callbacks=[ModelCheckpoint(**saving)],
    )  # fmt: skip
    trainer.fit(module, data)
    with evaluating(module.model):
        responder = ModelResponder(module.model, module.encoder, 64)
        said = responder.generate_until([Question(one.prompt, 12) for one in data.planted.facts])
    wrong = [
        fact
        for fact, text in zip(data.planted.facts, said, strict=True)
        if starts_with_answer(text, [fact.answer])
    ]
    return data, checkpoint_paths([folder / "epochs"]), wrong


def attribute(condition: str, seed: int, folder: Path) -> dict[str, Any]:
    """Rank the training texts by every method; return AUC and recall of each fact."""
    begin = time.process_time()
    data, checkpoints, facts = fine_tune(condition, seed, folder)
    tuned = time.process_time()
    model, tokenizer = load_language_model("atlas")
    encoder = PromptEncoder.for_model(model, tokenizer)
    texts = data.texts()
    causes = known_causes(texts, facts)
    found: dict[str, Any] = {}
    # Other settings are compared on one run alone.
    compared = 1 if seed or condition != next(iter(CONDITIONS)) else len(SETTINGS)
    for number, (name, settings) in enumerate(list(SETTINGS.items())[:compared]):
        attributor = TrainingDataAttributor(
            model, encoder, checkpoints, texts, settings, folder / f"index-{number}"
        )
        products = attributor.products(facts)
        scores = {f"β = {beta}": attributor.gradient_scores(products, beta) for beta in BETAS}
        # Methods without debias are the same for every β.
        scores["none"] = {
            method: scores["β = 0.1"][method]
            for method in GRADIENT_METHODS
            if method not in DEBIASED
        }
        for methods in scores.values():
            for method in scores["none"] if methods is not scores["none"] else ():
                del methods[method]
        if not number:
            scores["none"] |= attributor.baseline_scores(facts)
        found[name] = {
            beta: {
                method: {key: each.tolist() for key, each in fact_quality(one, causes, AT).items()}
                for method, one in methods.items()
            }
            for beta, methods in scores.items()
        }
    return {
        "texts": len(texts),
        "planted_facts": len(data.planted.facts),
        "answered_as_planted": len(facts),
        "cpu_seconds": {
            "fine_tuning": round(tuned - begin, 1),
            "attribution": round(time.process_time() - tuned, 1),
        },
        "quality": found,
    }


def table(runs: list[dict[str, Any]], setting: str, beta: str) -> dict[str, Any]:
    """Return means over the facts of several runs, with 95 % intervals of the bootstrap."""
    each: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        methods = run["quality"][setting]
        for method, values in {**methods[beta], **methods.get("none", {})}.items():
            for metric, numbers in values.items():
                each.setdefault(method, {}).setdefault(metric, []).extend(numbers)
    rows: dict[str, Any] = {}
    for method, values in each.items():
        for metric, numbers in values.items():
            mean = Resampling(len(numbers)).mean(np.array(numbers)[None, :])
            assert mean is not None
            rows.setdefault(method, {})[metric] = {
                "mean": round(mean.value, 4),
                "low": round(mean.low, 4),
                "high": round(mean.high, 4),
                "n": mean.n,
            }
    return rows


def main() -> None:
    """Fine-tune, attribute, and keep the table as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="seeds of a form; 0 chooses β")
    parser.add_argument("--work", type=Path, default=ROOT / "runs/planted-facts-study")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/planted_facts.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs: dict[str, list[dict[str, Any]]] = {}
    for seed in range(options.seeds):
        for condition in CONDITIONS:
            folder = options.work / condition.replace(", ", "-") / f"seed-{seed}"
            path = folder / "found.json"
            if not path.exists():
                folder.mkdir(parents=True, exist_ok=True)
                found = attribute(condition, seed, folder)
                write_atomic(path, json.dumps(found).encode())
            runs.setdefault(condition, []).append(json.loads(path.read_text()))
            done = runs[condition][-1]
            print(condition, seed, done["answered_as_planted"], done["cpu_seconds"], flush=True)
    first = next(iter(SETTINGS))
    record: dict[str, Any] = {
        "machine": machine(),
        "command": "python benchmarks/quality/planted_facts.py",
        "config": CONFIG,
        "language_model": weights_hash(load_language_model("atlas")[0]),
        "validation_seed": VALIDATION,
        "seeds": list(range(1, options.seeds)),
        "conditions": {},
    }
    for condition, listed in runs.items():
        choice = {
            f"β = {beta}": table(listed[:1], first, f"β = {beta}")["dda"]["auc"]["mean"]
            for beta in BETAS
        }
        best = max(choice, key=lambda one: choice[one])
        record["conditions"][condition] = {
            "arguments": CONDITIONS[condition],
            "texts": listed[0]["texts"],
            "facts": {
                "planted": sum(one["planted_facts"] for one in listed[1:]),
                "answered_as_planted": sum(one["answered_as_planted"] for one in listed[1:]),
            },
            "cpu_seconds": [one["cpu_seconds"] for one in listed],
            "beta": {"chosen": best, "auc_on_validation_seed": choice},
            "methods": table(listed[1:], first, best),
            "auc_by_beta": {
                name: {
                    method: table(listed[1:], first, name)[method]["auc"]["mean"]
                    for method in DEBIASED
                }
                for name in choice
            },
        }
        if condition == next(iter(CONDITIONS)):
            record["settings"] = {
                name: {
                    method: {metric: one["mean"] for metric, one in values.items()}
                    for method, values in table(listed[:1], name, best).items()
                }
                for name in SETTINGS
            }
        print(f"\n{condition}, {best}")
        for method, values in record["conditions"][condition]["methods"].items():
            said = "  ".join(f"{metric} {one['mean']:.3f}" for metric, one in values.items())
            print(f"  {method:<24}{said}")
    options.out.write_text(json.dumps(record, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
