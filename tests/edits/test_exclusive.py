"""Two threads edit one model one after the other, and autocast does not round an edit."""

import copy
import logging
import pickle
import threading
import time

import pytest
import torch

from lightning_edit.editors import FTL, ROME
from lightning_edit.editors.base import Editor
from lightning_edit.edits.exclusive import exclusive, model_lock
from lightning_edit.models.weights import weights_hash
from tests.models.tiny import build_tiny, build_tokenizer

FACTS = [
    {"prompt": "The capital of France is", "target": " Rome", "subject": "France"},
    {"prompt": "The capital of Italy is", "target": " Paris", "subject": "Italy"},
]


def editor(kind: type[Editor]) -> Editor:
    if kind is FTL:
        return FTL(steps=3)
    return ROME(layers=[1], statistics="identity", steps=3, context_templates=["{}"])


def test_two_threads_write_as_if_one_after_the_other() -> None:
    orders = set()
    for order in (FACTS, FACTS[::-1]):
        model = build_tiny("gpt2")
        handle = FTL(steps=8).edit_model(model, build_tokenizer(), order[0])
        handle.edit(order[1])
        orders.add(weights_hash(model))
    model = build_tiny("gpt2")
    handle = FTL(steps=8).edit_model(model, build_tokenizer(), FACTS[0])
    handle.undo()
    failures: list[BaseException] = []

    def write(fact: dict[str, str]) -> None:
        try:
            handle.edit(fact)
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=write, args=(fact,)) for fact in FACTS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert weights_hash(model) in orders
    handle.undo()
    assert weights_hash(model) == weights_hash(build_tiny("gpt2"))


def test_an_edit_waits_for_whoever_holds_the_model() -> None:
    model = build_tiny("gpt2")
    handle = FTL(steps=1).edit_model(model, build_tokenizer(), FACTS[0])
    done = threading.Event()

    def write() -> None:
        handle.edit(FACTS[1])
        done.set()

    with exclusive(model):
        thread = threading.Thread(target=write)
        thread.start()
        time.sleep(0.2)
        assert not done.is_set()
    thread.join()
    assert done.is_set()


def test_models_with_a_lock_are_copied_and_saved() -> None:
    model = build_tiny("gpt2")
    FTL(steps=1).edit_model(model, build_tokenizer(), FACTS[0])
    lock = model_lock(model)
    assert model_lock(copy.deepcopy(model)) is not lock
    assert model_lock(pickle.loads(pickle.dumps(model))) is not lock  # noqa: S301  # our own
    assert model_lock(model) is lock


@pytest.mark.parametrize("kind", [FTL, ROME])
def test_autocast_changes_no_bit(kind: type[Editor], caplog: pytest.LogCaptureFixture) -> None:
    plain, under = build_tiny("gpt2"), build_tiny("gpt2")
    editor(kind).edit_model(plain, build_tokenizer(), FACTS[0]).edit(FACTS[1])
    with caplog.at_level(logging.WARNING), torch.autocast("cpu", dtype=torch.bfloat16):
        editor(kind).edit_model(under, build_tokenizer(), FACTS[0]).edit(FACTS[1])
        assert torch.is_autocast_enabled("cpu")
    assert weights_hash(under) == weights_hash(plain) != weights_hash(build_tiny("gpt2"))
    assert len([one for one in caplog.messages if "Autocast" in one]) == 1  # of two edits
