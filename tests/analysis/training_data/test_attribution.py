"""Attribution finds planted texts, resumes with the same bits, and refuses what does not belong."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from lightning_edit.analysis.training_data.attribution import (
    GRADIENT_METHODS,
    Products,
    TrainingDataAttributor,
)
from lightning_edit.analysis.training_data.checkpoints import checkpoint_paths
from lightning_edit.analysis.training_data.index import IndexSettings
from lightning_edit.analysis.training_data.quality import fact_quality, known_causes, quality_table
from lightning_edit.analysis.training_data.rows import TracedFact, read_texts, read_traced_facts
from lightning_edit.exceptions import CheckpointError, ConfigError, DataError
from lightning_edit.models.loading import load_language_model
from lightning_edit.models.prompt_encoder import PromptEncoder
from lightning_edit.models.weights import weights_hash
from tests.analysis.training_data.tuned import Tuned, fine_tune
from tests.models.tiny import build_tiny

SETTINGS = IndexSettings(block_size=6, rows_per_pass=4)


def attributor(tuned: Tuned, folder: Path, **changes: Any) -> TrainingDataAttributor:
    model, tokenizer = load_language_model(str(tuned.base))
    arguments = {
        "model": model,
        "encoder": PromptEncoder.for_model(model, tokenizer),
        "checkpoints": checkpoint_paths([tuned.checkpoints])[1::2],
        "texts": read_texts(tuned.text),
        "settings": SETTINGS,
        "folder": folder,
    }
    return TrainingDataAttributor(**(arguments | changes))


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_planted_text_is_found_in_every_script(tuned: Tuned, tmp_path: Path) -> None:
    one, facts = attributor(tuned, tmp_path / "index"), read_traced_facts(tuned.facts)
    before = weights_hash(one.model)
    steps: list[int] = []
    products = one.products(facts, steps.append)
    assert steps == list(range(1, one.steps + 1))
    assert one.steps == 3 * 3
    scores = one.gradient_scores(products, 0.1)
    assert tuple(sorted(scores)) == tuple(sorted(GRADIENT_METHODS))
    scores |= one.baseline_scores(facts, bm25=False)
    assert weights_hash(one.model) == before
    causes = known_causes(one.texts, facts)
    assert causes.sum(0).tolist() == [1, 1, 1, 1]
    table = quality_table(scores, causes, (1, 3))
    for method in ("dda", "dda_no_debias", "gradient_cosine", "dda_raw_no_debias", "tracin"):
        assert table[method]["auc"]["mean"] > 0.9, method
        assert table[method]["auc"]["n"] == 4
    best = scores["dda"].argmax(0).tolist()
    assert [one.texts[place].id for place in best] == [f"wrong-{number}" for number in range(4)]


def test_a_text_that_was_not_learnt_is_not_found(tuned: Tuned, tmp_path: Path) -> None:
    """The same texts, but checkpoints that never moved: nothing tells a cause from the rest."""
    facts = read_traced_facts(tuned.facts)
    one = attributor(tuned, tmp_path / "index", checkpoints=[tuned.base] * 2)
    products = one.products(facts)
    torch.testing.assert_close(products.epochs, products.base.expand_as(products.epochs))
    assert one.gradient_scores(products, beta=1.0)["dda_raw"].abs().max() < 1e-4
    assert one.gradient_scores(products, beta=0.0)["dda_raw"].abs().max() > 1e-2


def test_scores_are_those_of_the_combination_by_hand(tuned: Tuned, tmp_path: Path) -> None:
    every = checkpoint_paths([tuned.checkpoints])
    one = attributor(tuned, tmp_path / "index", checkpoints=every)
    epochs = torch.tensor([[[1.0], [8.0]], [[3.0], [0.0]], [[2.0], [1.0]], [[2.0], [3.0]]])
    ones = (torch.ones(2), torch.ones(1))
    products = Products(
        torch.tensor([[1.0], [4.0]]), epochs, ones, (torch.ones(4, 2), torch.ones(4, 1))
    )
    scores = one.gradient_scores(products, 0.5, [0.0, 1.0, 0.0, 2.0])
    assert scores["dda_raw"].flatten().tolist() == [1.5, 1.0]
    assert scores["dda_raw_no_debias"].flatten().tolist() == [2.0, 3.0]
    assert scores["dda_raw_no_denoise"].flatten().tolist() == [1.5, 1.0]
    assert scores["gradient_product"].flatten().tolist() == [2.0, 3.0]
    assert scores["tracin"].flatten().tolist() == [7.0, 6.0]
    long = replace(products, epoch_norms=(torch.tensor([[1.0, 2.0]] * 4), torch.ones(4, 1)))
    unit = one.gradient_scores(long, 0.5)
    assert unit["gradient_cosine"].flatten().tolist() == [2.0, 1.5]
    assert unit["dda"].flatten().tolist() == [1.5, -0.5]
    assert unit["dda_no_debias"].flatten().tolist() == [2.0, 1.5]
    assert unit["dda_no_denoise"].flatten().tolist() == [1.5, -0.5]
    with pytest.raises(ConfigError, match=r"expected 4 learning rates.*got 1"):
        one.gradient_scores(products, 0.5, [1.0])


@pytest.mark.parametrize("projection", [None, 8])
def test_a_resumed_index_has_the_bits_of_one_that_was_not_interrupted(
    tuned: Tuned, tmp_path: Path, projection: int | None
) -> None:
    facts = read_traced_facts(tuned.facts)
    last = checkpoint_paths([tuned.checkpoints])[-1:]
    arguments = {"settings": replace(SETTINGS, projection=projection), "checkpoints": last}
    whole = attributor(tuned, tmp_path / "whole", **arguments).products(facts)

    def stop(done: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    first = attributor(tuned, tmp_path / "parts", **arguments)
    before = weights_hash(first.model)
    with pytest.raises(KeyboardInterrupt):
        first.products(facts, stop)
    assert weights_hash(first.model) == before
    assert len(list((tmp_path / "parts").rglob("*.safetensors"))) == 4
    again = attributor(tuned, tmp_path / "parts", **arguments).products(facts)
    assert torch.equal(again.epochs, whole.epochs)
    assert torch.equal(again.base, whole.base)
    assert files(tmp_path / "parts") == files(tmp_path / "whole")
    # What is there is read, not made again.
    third = attributor(tuned, tmp_path / "parts", **arguments)
    assert third.steps == 6
    assert third.index.block(1, 2, pytest.fail)[0].count == 4


def test_block_size_and_passes_bound_memory_and_change_no_score(
    tuned: Tuned, tmp_path: Path
) -> None:
    facts = read_traced_facts(tuned.facts)
    last = checkpoint_paths([tuned.checkpoints])[-1:]
    whole, small = IndexSettings(), IndexSettings(block_size=5, rows_per_pass=3)
    one, other = (
        attributor(tuned, tmp_path / name, settings=settings, checkpoints=last).products(facts)
        for name, settings in (("whole", whole), ("small", small))
    )
    assert len(list((tmp_path / "small").rglob("*.safetensors"))) == 2 * 4
    torch.testing.assert_close(one.epochs, other.epochs, rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def made(tuned: Tuned, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "index"
    attributor(tuned, folder).products(read_traced_facts(tuned.facts))
    return folder


def test_an_index_of_something_else_is_refused_and_left_alone(tuned: Tuned, made: Path) -> None:
    before = files(made)
    size = load_language_model(str(tuned.base))[0].config.vocab_size
    other = build_tiny("llama", seed=1, vocab_size=size)
    texts = read_texts(tuned.text)
    changed = [replace(texts[0], text="Berlin"), *texts[1:]]
    paths = checkpoint_paths([tuned.checkpoints])
    cases: list[tuple[dict[str, Any], str]] = [
        ({"model": other.requires_grad_(False)}, "made with another model"),
        ({"texts": changed}, "the training text has changed"),
        ({"texts": texts[:-1]}, "the training text has changed"),
        ({"checkpoints": paths[:-1]}, "made with other checkpoints"),
        ({"settings": replace(SETTINGS, projection=4)}, "other settings.*projection null, not 4"),
        ({"settings": replace(SETTINGS, subset=("mlp",))}, "other settings.*and.*other modules"),
    ]
    for changes, said in cases:
        with pytest.raises(ConfigError, match=f"is an index of something else: .*{said}"):
            attributor(tuned, made, **changes)
    assert files(made) == before


def test_damaged_and_foreign_blocks_are_refused(tuned: Tuned, made: Path, tmp_path: Path) -> None:
    folder, facts = tmp_path / "index", read_traced_facts(tuned.facts)
    shutil.copytree(made, folder)
    block = folder / "checkpoint-001" / "block-00001.safetensors"
    with safe_open(block, framework="pt") as file:
        assert file.metadata().keys() == {"index"}
    whole = block.read_bytes()
    block.write_bytes(whole[:-9])
    with pytest.raises(DataError, match=r"block-00001.safetensors is damaged.*delete this file"):
        attributor(tuned, folder).products(facts)
    block.write_bytes(whole.replace(b'"index":"', b'"index":"0')[: len(whole)])
    with pytest.raises(DataError):
        attributor(tuned, folder).products(facts)
    block.unlink()
    attributor(tuned, folder).products(facts)
    assert block.read_bytes() == whole
    (folder / "index.json").write_text("[")
    with pytest.raises(DataError, match=r"index.json is damaged"):
        attributor(tuned, folder)
    (folder / "index.json").unlink()
    with pytest.raises(DataError, match=r"blocks of an index, but no index.json"):
        attributor(tuned, folder)


def test_what_cannot_be_attributed_is_refused_before_anything_is_written(
    tuned: Tuned, tmp_path: Path
) -> None:
    folder = tmp_path / "index"
    with pytest.raises(ConfigError, match="expected at least one checkpoint"):
        attributor(tuned, folder, checkpoints=[])
    with pytest.raises(DataError, match="expected at least one training text"):
        attributor(tuned, folder, texts=[])
    with pytest.raises(ConfigError, match="'lora' has no linear layer"):
        attributor(tuned, folder, settings=IndexSettings(subset=("lora",)))
    one = attributor(tuned, folder)
    with pytest.raises(DataError, match="expected at least one fact"):
        one.products([])
    with pytest.raises(DataError, match="expected a prompt and an answer, got 'a' and ' '"):
        one.products([TracedFact("empty", "a", " ")])
    long = TracedFact("long", "The capital of " * 60, "Rome")
    with pytest.raises(DataError, match="'long' cannot be encoded"):
        one.products([long])
    assert not folder.exists()


def test_checkpoints_of_another_model_or_none_are_refused(tuned: Tuned, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected at least one checkpoint, got none"):
        checkpoint_paths([tmp_path])
    with pytest.raises(CheckpointError, match="expected a checkpoint, got nothing there"):
        checkpoint_paths([tmp_path / "missing.ckpt"])
    build_tiny("gpt2").save_pretrained(tmp_path / "other")
    with pytest.raises(CheckpointError, match="lacks weights of LlamaForCausalLM such as"):
        attributor(tuned, tmp_path / "index", checkpoints=[tmp_path / "other"])
    build_tiny("llama").save_pretrained(tmp_path / "small")
    with pytest.raises(CheckpointError, match=r"expected model.embed_tokens.weight of shape"):
        attributor(tuned, tmp_path / "index", checkpoints=[tmp_path / "small"])
    diverged = load_language_model(str(tuned.base))[0]
    with torch.no_grad():
        diverged.lm_head.weight[3, 3] = float("nan")
    diverged.save_pretrained(tmp_path / "diverged")
    with pytest.raises(CheckpointError, match="expected finite weights, got NaN or infinity in"):
        attributor(tuned, tmp_path / "index", checkpoints=[tmp_path / "diverged"])
    broken = tmp_path / "broken.ckpt"
    broken.write_bytes(b"PK\x03\x04 no checkpoint")
    with pytest.raises(CheckpointError, match="damaged or incomplete"):
        attributor(tuned, tmp_path / "index", checkpoints=[broken])
    assert not (tmp_path / "index").exists()


def test_lightning_files_and_saved_models_are_the_same_checkpoints(
    tuned: Tuned, tmp_path: Path
) -> None:
    paths = checkpoint_paths([tuned.checkpoints])
    assert [path.name for path in paths] == [f"epoch={number:02d}.ckpt" for number in range(4)]
    model, _ = load_language_model(str(tuned.base))
    content = torch.load(paths[-1], weights_only=True)["state_dict"]
    model.load_state_dict({name.removeprefix("model."): value for name, value in content.items()})
    model.save_pretrained(tmp_path / "epoch-3")
    facts = read_traced_facts(tuned.facts)
    ours = attributor(tuned, tmp_path / "a", checkpoints=[paths[-1]]).products(facts)
    theirs = attributor(tuned, tmp_path / "b", checkpoints=[tmp_path / "epoch-3"]).products(facts)
    assert torch.equal(ours.epochs, theirs.epochs)
    assert json.loads((tmp_path / "a/index.json").read_text()) == json.loads(
        (tmp_path / "b/index.json").read_text()
    )


def test_epochs_of_a_folder_come_in_natural_order(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        (tmp_path / f"epoch={number}.ckpt").touch()
    (tmp_path / "notes.txt").touch()
    names = [path.name for path in checkpoint_paths([tmp_path])]
    assert names == ["epoch=1.ckpt", "epoch=2.ckpt", "epoch=10.ckpt"]


def test_auc_and_recall_by_hand_also_of_large_and_negative_scores() -> None:
    causes = torch.tensor([[True, False], [False, False], [True, False], [False, False]])
    scores = torch.tensor([[-1.0, 0.0], [-2.0, 0.0], [-3.0, 0.0], [-4.0, 0.0]])
    for scale in (1.0, 1e6):
        found = fact_quality(scores * scale, causes, (1, 3))
        assert found["auc"][0] == 0.75
        assert found["recall@1"][0] == 0.5
        assert found["recall@3"][0] == 1.0
        assert all(str(each[1]) == "nan" for each in found.values())
    assert fact_quality(torch.zeros(4, 1), causes[:, :1], (1,))["auc"][0] == 0.5


def test_bm25_ranks_the_text_with_the_rare_word_first() -> None:
    pytest.importorskip("bm25s", reason="the extra `attribution` is not installed")
    from lightning_edit.analysis.training_data.baselines import bm25_scores

    texts = ["The capital of France is Paris", "The capital of Spain is Rome", "西班牙的首都是巴黎"]
    found = bm25_scores(texts, ["What is the capital of Spain? Rome", "西班牙的首都"])
    assert found.argmax(0).tolist() == [1, 2]
    assert found[2, 0] == 0


def test_without_bm25s_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from lightning_edit.analysis.training_data.baselines import bm25_scores

    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(ConfigError, match=r"pip install .lightning-edit\[attribution\]"):
        bm25_scores(["a"], ["a"])


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "qwen3", "t5"])
def test_other_architectures_find_the_planted_text(family: str, tmp_path: Path) -> None:
    other = fine_tune(tmp_path, family, epochs=8)
    facts = read_traced_facts(other.facts)
    one = attributor(other, tmp_path / "index")
    scores = one.gradient_scores(one.products(facts))
    found = fact_quality(scores["dda"], known_causes(one.texts, facts), (1,))
    assert found["auc"].mean() > 0.9
