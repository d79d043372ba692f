"""Contracts of every editor that acts at run time: one list of tests, and a line for each editor.

A new editor joins with a line in :data:`CASES`. Everything is asked of the handle of the editor:
deltas are made once for each editor and architecture, and put into force on fresh models.
"""

import copy
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import lightning_edit
from lightning_edit.editors import (
    GRACE,
    ICE,
    IKE,
    MELO,
    MEMOIR,
    RAG,
    WISE,
    CaliNet,
    MeLLo,
    MemPrompt,
    TPatcher,
)
from lightning_edit.editors.base import Editor
from lightning_edit.editors.routing.serac import SERAC
from lightning_edit.edits.delta import Delta
from lightning_edit.edits.edited_model import EditedModel
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.edits.ledger import Ledger
from lightning_edit.exceptions import LedgerError
from lightning_edit.functional.padding import pad
from lightning_edit.inference.responder import Question, Statement, TokenScores
from lightning_edit.types import EditRequest, Probe
from tests.editors.runtime_toys import Book, Neurons, Sorter, Told
from tests.editors.snapshots import assert_unchanged, snapshot
from tests.models.tiny import CORPUS, build_tiny, build_tokenizer

Factory = Callable[[Any, Any], Editor]
"""Language model and tokenizer in; an editor out that is bound to them, and trained if need be."""


@dataclass(frozen=True)
class Case:
    """An editor that keeps the contracts.

    Args:
        make: Makes it.
        families: Architectures (``tests/models/tiny.py``) it is tested on, the first by default.
        two_stacks: Such of two stacks, tested where the tests are slow; ``test_two_stacks_runtime``
            runs some by default.
        scoped: Whether it leaves prompts alone that have nothing to do with an edit.
        parallel: Makes it where attention and MLP of a block work side by side; ``None``: as
            ``make`` does.
        in_modules: Whether it acts inside the model, so that somebody else's calls see it.
        by_prompt: Whether it then decides once a prompt. Each call of a generation without a KV
            cache is a prompt of its own to it, where only the responder knows better.
        undo_leaves: Why an undo in the middle does not equal never having edited, as the editor's
            documentation says it; empty: it does.
        silent: Why it may generate nothing where it scores answers, as the editor's documentation
            says it; empty: it does not.
    """

    make: Factory
    families: tuple[str, ...] = ("gpt2", "llama")
    two_stacks: tuple[str, ...] = ()
    scoped: bool = True
    in_modules: bool = True
    by_prompt: bool = True
    undo_leaves: str = ""
    silent: str = ""
    parallel: Factory | None = None


#: T5 1.0, T5 1.1 (with a gate) and BART.
TWO_STACKS = ("t5", "t5 gated", "bart")
#: What IKE puts before prompts, where there is room.
DEMONSTRATION = EditRequest(
    "demo",
    "Lyon lies in",
    "Italy",
    rephrases=("Lyon is in",),
    probes=(Probe.of("neighborhood", "Arles lies in", "France"),),
)
CASES: dict[str, Case] = {
    "Told": Case(
        lambda m, t: Told().bind(m, t), families=("gpt2",), scoped=False, in_modules=False
    ),
    "Sorter": Case(
        lambda m, t: Sorter().train_on(2).bind(m, t), families=("llama",), in_modules=False
    ),
    "Book": Case(lambda m, t: Book().bind(m, t), families=("gpt2", "llama", "gemma2")),
    "Neurons": Case(
        lambda m, t: Neurons().bind(m, t), families=("llama", "gpt2"), scoped=False, by_prompt=False
    ),
    "GRACE": Case(
        lambda m, t: GRACE(layer=1, steps=20, radius=0.5).bind(m, t),
        families=("llama", "gpt2"),
        two_stacks=TWO_STACKS,
    ),
    "GRACE in the decoder": Case(
        lambda m, t: GRACE(layer=0, steps=20, radius=0.5, stack="decoder").bind(m, t),
        families=(),
        two_stacks=("bart", "t5"),
    ),
    "WISE": Case(
        lambda m, t: WISE(1, steps=20, lr=0.1, margins=(0.5, 4.0, 3.0), templates=[]).bind(m, t),
        families=("llama", "gpt2"),
        scoped=False,  # a random model has no room for several edits in one side matrix
        undo_leaves="edits that stay keep what they learnt beside the one that is undone",
    ),
    "MEMOIR": Case(
        lambda m, t: MEMOIR(1, steps=20, templates=[], threshold=0.9).bind(m, t),
        families=("gpt2", "llama"),
        scoped=False,  # nor its prompts features that tell them apart
        undo_leaves="edits that stay keep what they learnt beside the one that is undone",
    ),
    "MELO": Case(
        lambda m, t: MELO(0, layers=[1, 2], rank=8, steps=20, radius_share=0.05).bind(m, t),
        families=("gpt2", "llama"),
        # Their first block's MLP has read the last token alone.
        parallel=lambda m, t: MELO(1, layers=[2], rank=8, steps=20, radius_share=0.05).bind(m, t),
    ),
    "RAG": Case(
        lambda m, t: RAG(k=1, threshold=None).bind(m, t),
        ("gpt2",),
        ("t5",),
        scoped=False,
        in_modules=False,
    ),
    "ICE": Case(
        lambda m, t: ICE(newest=1).bind(m, t), ("llama",), ("bart",), scoped=False, in_modules=False
    ),
    "IKE": Case(
        lambda m, t: IKE([DEMONSTRATION], k=1).bind(m, t),
        families=("gpt2",),
        two_stacks=TWO_STACKS,
        scoped=False,
        in_modules=False,
    ),
    "MemPrompt": Case(
        lambda m, t: MemPrompt(examples=False).bind(m, t),
        families=("llama",),
        two_stacks=("t5",),
        scoped=False,
        in_modules=False,
    ),
    "MeLLo": Case(
        lambda m, t: MeLLo(steps=1, turn_tokens=8).bind(m, t),
        families=("gpt2",),
        scoped=False,
        in_modules=False,
        silent="a dialogue that leaves its format, as those of a random model, has no answer",
    ),
    "TPatcher": Case(
        lambda m, t: TPatcher(memory=list(CORPUS), steps=10, scale=1.0).bind(m, t),
        two_stacks=TWO_STACKS,
        scoped=False,
        by_prompt=False,
        undo_leaves="later neurons were trained beside the earlier ones and on their states",
    ),
    "CaliNet": Case(
        lambda m, t: CaliNet(width=8, steps=15).bind(m, t),
        two_stacks=TWO_STACKS,
        scoped=False,
        by_prompt=False,
        undo_leaves="later blocks were trained beside the earlier ones",
    ),
}


def _serac(model: Any, tokenizer: Any) -> Editor:
    """An untrained classifier, with a scale that parts the prompts below as a trained one would."""
    editor = SERAC(
        classifier="scratch",
        classifier_hidden=32,
        classifier_layers=1,
        counterfactual_layers=1,
        scale=2650.0,
        seed=8,
    )
    editor.trained_batches += 1
    return editor.bind(model, tokenizer)


CASES["SERAC"] = Case(_serac, families=("llama", "gpt2"), two_stacks=TWO_STACKS, in_modules=False)

#: Stand-ins that exist for these tests.
TOYS = ("Told", "Sorter", "Book", "Neurons")
#: Other architectures, of which every editor is tested on one.
OTHERS = ("falcon", "opt", "bloom", "gpt_neox", "gemma3_text", "qwen2", "qwen3")
#: Those whose blocks compute attention and MLP side by side.
PARALLEL = ("falcon", "gpt_neox")


def others_of(name: str) -> tuple[str, ...]:
    """Return the other architecture that an editor is tested on: they take turns."""
    published = [one for one, case in CASES.items() if case.families and one not in TOYS]
    if name not in published:
        return ()
    return (OTHERS[published.index(name) % len(OTHERS)],)


REQUESTS = [
    EditRequest("a", "The capital of France is", "Lyon", "France"),
    EditRequest("b", "The capital of Italy is", "Arles", "Italy"),
    EditRequest("c", "Marseille lies in", "Italy", "Marseille"),
]
INSIDE = [request.prompt for request in REQUESTS]
#: Prompts of other facts; one goes on where an edit's prompt ends, one is the beginning of it.
OUTSIDE = ["Lyon", "The capital of France is in", "The capital"]
PROMPTS = [INSIDE[0], OUTSIDE[0], *OUTSIDE[1:], INSIDE[2]]
NEW_TOKENS = 4

# The first architecture of every editor is tested by default, the others are slow tests.
RUNS = [
    pytest.param(name, family, id=f"{name}-{family}", marks=[pytest.mark.slow] if later else [])
    for name, case in CASES.items()
    for later, family in [
        *enumerate(case.families),
        *((1, one) for one in (*case.two_stacks, *others_of(name))),
    ]
]
every = pytest.mark.parametrize(("name", "family"), RUNS)


def some(wanted: Callable[[Case], bool]) -> Any:
    """Parametrise a test over the editors of which something holds."""
    found = [one for one in RUNS if wanted(CASES[str(one.values[0])])]
    return pytest.mark.parametrize(("name", "family"), found)


def model_of(family: str) -> Any:
    """Build a tiny model; its positions hold a few texts before a prompt."""
    changes: dict[str, Any] = {}
    if "gated" in family:
        changes = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    if family in ("bart", "falcon", "opt", "gpt_neox"):
        changes = {"max_position_embeddings": 128}
    return build_tiny(family.split()[0], **changes).requires_grad_(False)


@cache
def tokenizer_of(family: str, side: str = "right") -> Any:
    """Build the tokenizer, padding on either side."""
    two = family in TWO_STACKS
    tokenizer = build_tokenizer(bos=not two, eos=two)
    tokenizer.padding_side = side
    return tokenizer


def logits_of(model: Any, ids: Tensor) -> Tensor:
    """Call a model of one stack, or of two with a few tokens of an answer."""
    if model.config.is_encoder_decoder:
        found: Tensor = model(input_ids=ids, labels=torch.tensor([[7, 9, 2]])).logits
    else:
        found = model(ids).logits
    return found


def bound(name: str, family: str, side: str = "right") -> Editor:
    """Return the editor on a fresh model."""
    case = CASES[name]
    make = case.parallel if case.parallel and family in PARALLEL else case.make
    return make(model_of(family), tokenizer_of(family, side))


@cache
def made(
    name: str, family: str, ids: tuple[str, ...] = ("a", "b", "c")
) -> tuple[tuple[Delta, tuple[EditRequest, ...]], ...]:
    """Make the edits of some requests once, one after the other."""
    edited = EditedModel(editor := bound(name, family))
    editor.last_ledger = edited.ledger
    for request in REQUESTS:
        if request.id in ids:
            edited.edit(request)
    entries, deltas = edited.ledger.in_force.entries, edited.ledger.deltas
    return tuple(
        (delta, tuple(EditRequest.from_dict(row) for row in entry.requests))
        for entry, delta in zip(entries, deltas, strict=True)
    )


def handle(
    name: str, family: str, ids: tuple[str, ...] = ("a", "b", "c"), side: str = "right"
) -> EditedModel:
    """Return a handle of a fresh model with the edits in force."""
    editor = bound(name, family, side)
    edited = EditedModel(editor)
    editor.last_ledger = edited.ledger
    return edited.take(made(name, family, ids))


class Answers(NamedTuple):
    """What an edited model says: generated texts, and scores of given answers."""

    texts: list[str]
    scores: list[TokenScores]


def ask(edited: EditedModel, prompts: Sequence[str] = PROMPTS) -> Answers:
    """Ask for continuations, and score them and the answers of the edits."""
    responder = edited.responder()
    texts = responder.generate_until([Question(one, NEW_TOKENS) for one in prompts], ())
    statements = [
        Statement(prompt, answer)
        for prompt, text in zip(prompts, texts, strict=True)
        for answer in (text, "Lyon", "Arles")
        if answer
    ]
    return Answers(texts, responder.loglikelihood(statements))


def ask_texts(edited: EditedModel, limit: int = 0) -> list[str]:
    """Ask for continuations alone."""
    responder = edited.responder()
    return responder.generate_until([Question(one, limit or NEW_TOKENS) for one in PROMPTS], ())


def assert_alike(one: Sequence[TokenScores], other: Sequence[TokenScores]) -> None:
    """Compare scores of passes of another shape, which round differently."""
    assert [score.tokens for score in one] == [score.tokens for score in other]
    assert [score.best for score in one] == [score.best for score in other]
    for a, b in zip(one, other, strict=True):
        assert a.nlls == pytest.approx(b.nlls, rel=1e-3, abs=1e-3)


# ------------------------------------------------------------------------------------------ asking


@every
def test_forced_first_choices_are_the_greedy_continuation(name: str, family: str) -> None:
    if CASES[name].silent:
        pytest.skip(CASES[name].silent)
    edited = handle(name, family)
    responder = edited.responder()
    tokenizer = edited.tokenizer
    texts = responder.generate_until([Question(one, NEW_TOKENS) for one in PROMPTS], ())
    statements = [
        Statement(prompt, answer)
        for prompt, text in zip(PROMPTS, texts, strict=True)
        for answer in (text, "Lyon", "Italy")
        if answer
    ]
    wanted: dict[Question, str] = {}
    for asked, score in zip(statements, responder.loglikelihood(statements), strict=True):
        pairs = zip(score.tokens, score.best, strict=True)
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), len(score.best) - 1)
        first = list(score.best[: same + 1])  # the last one follows tokens that it would choose
        if tokenizer.eos_token_id in first:
            first = first[: first.index(tokenizer.eos_token_id)]
        expected = tokenizer.decode(first, skip_special_tokens=True).strip()
        assert wanted.setdefault(Question(asked.prompt, same + 1), expected) == expected
    assert len(wanted) >= len(PROMPTS)
    assert dict(zip(wanted, responder.generate_until(list(wanted), ()), strict=True)) == wanted


@every
def test_edits_change_what_is_said(name: str, family: str) -> None:
    edited = handle(name, family)
    with_edits = ask(edited, INSIDE)
    edited.undo()
    without = ask(edited, INSIDE)
    assert with_edits != without


@every
def test_a_mixed_batch_equals_one_by_one(name: str, family: str) -> None:
    edited = handle(name, family)
    together = ask(edited)
    alone = [ask(edited, [prompt]) for prompt in PROMPTS]
    assert together.texts == [text for one in alone for text in one.texts]
    assert_alike(together.scores, [score for one in alone for score in one.scores])
    backwards = ask(edited, PROMPTS[::-1])
    assert backwards.texts == together.texts[::-1]


@every
def test_the_padding_side_and_the_batch_size_change_nothing(name: str, family: str) -> None:
    right = handle(name, family)
    left = handle(name, family, side="left")
    expected = ask(right)
    found = ask(left)
    assert found.texts == expected.texts
    assert_alike(found.scores, expected.scores)
    small = right.responder(2)
    assert small.generate_until([Question(p, NEW_TOKENS) for p in PROMPTS], ()) == expected.texts


@every
def test_a_handle_generates_what_its_responder_says(name: str, family: str) -> None:
    edited = handle(name, family)
    texts = ask(edited).texts
    assert [edited.generate(prompt, NEW_TOKENS) for prompt in PROMPTS[:3]] == texts[:3]


@some(lambda case: case.scoped)
def test_prompts_out_of_scope_have_the_bits_of_the_unedited_model(name: str, family: str) -> None:
    edited = handle(name, family)
    responder = edited.responder()
    plain = bound(name, family)
    bare = plain.responder(())
    statements = [Statement(prompt, "Lyon and Arles") for prompt in OUTSIDE]
    assert responder.loglikelihood(statements) == bare.loglikelihood(statements)
    questions = [Question(prompt, NEW_TOKENS) for prompt in OUTSIDE]
    assert responder.generate_until(questions, ()) == bare.generate_until(questions, ())


# --------------------------------------------------------------------------------- undo and redo


@every
def test_an_undo_in_the_middle_and_a_redo(name: str, family: str) -> None:
    edited = handle(name, family)
    before = ask(edited)
    edited.undo("b")
    rest = ask(edited)
    # What stays acts from its own deltas alone.
    editor = bound(name, family)
    twin = EditedModel(editor)
    editor.last_ledger = twin.ledger
    first, _, last = made(name, family)
    assert ask(twin.take([first, last])) == rest
    if not CASES[name].undo_leaves:
        assert ask(handle(name, family, ("a", "c"))) == rest
    edited.redo("b")
    assert ask(edited) == before


@pytest.mark.slow
@every
def test_a_fourth_edit_after_an_undo_equals_one_without_the_undone_edit(
    name: str, family: str
) -> None:
    if CASES[name].undo_leaves:
        pytest.skip(CASES[name].undo_leaves)
    fourth = EditRequest("d", "The mother tongue of Danielle Darrieux is", "Italian")
    undone, never = handle(name, family), handle(name, family, ("a", "c"))
    assert ask(undone.undo("b").edit(fourth)) == ask(never.edit(fourth))


@every
def test_nothing_is_left_on_the_model_after_undoing_all(name: str, family: str) -> None:
    editor = bound(name, family)
    model = editor.language_model
    before, ids = snapshot(model), torch.tensor([[1, 7, 9, 11, 20]])
    logits = logits_of(model, ids)
    edited = EditedModel(editor)
    editor.last_ledger = edited.ledger
    edited.take(made(name, family))
    ask(edited, PROMPTS[:2])
    edited.undo()
    assert_unchanged(model, before)
    assert torch.equal(logits_of(model, ids), logits)
    edited.redo("a").undo("a")
    assert_unchanged(model, before)


# ---------------------------------------------------------------------------------------- editing


@every
@pytest.mark.parametrize("trainable", [False, True])
def test_edit_leaves_the_model_as_it_was(name: str, family: str, trainable: bool) -> None:
    editor = bound(name, family)
    model = editor.language_model.requires_grad_(trainable)
    batch = encode_batch(editor.prompts, REQUESTS[:1])
    before, state = snapshot(model), torch.get_rng_state()
    first = editor.edit(batch)
    assert_unchanged(model, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert not first.is_empty
    edited = EditedModel(editor)
    editor.last_ledger = edited.ledger
    edited.take([(first, REQUESTS[:1])])
    before, said = snapshot(model), ask(edited, PROMPTS[:2])
    editor.edit(encode_batch(editor.prompts, REQUESTS[1:2]))
    assert_unchanged(model, before)
    assert ask(edited, PROMPTS[:2]) == said


@every
def test_a_delta_on_disk_acts_as_the_one_in_memory(name: str, family: str, tmp_path: Path) -> None:
    edited = handle(name, family)
    loaded = []
    for place, (delta, requests) in enumerate(made(name, family)):
        delta.save(path := tmp_path / f"{place}.safetensors")
        loaded.append((Delta.load(path), requests))
    editor = bound(name, family)
    twin = EditedModel(editor)
    editor.last_ledger = twin.ledger
    assert ask(twin.take(loaded)) == ask(edited)


@every
def test_a_ledger_without_its_runtime_refuses(name: str, family: str) -> None:
    editor = bound(name, family)
    before = snapshot(editor.language_model)
    with pytest.raises(LedgerError, match="acts at run time"):
        Ledger(editor.language_model, editor).commit(made(name, family)[0][0], REQUESTS[:1])
    assert_unchanged(editor.language_model, before)


# ------------------------------------------------------------------------- somebody else's calls


@some(lambda case: case.in_modules)
def test_calls_of_somebody_else_act_as_the_responder_does(name: str, family: str) -> None:
    edited = handle(name, family)
    if family in TWO_STACKS:
        assert_two_stacks_answer_others(edited)
        return
    model, tokenizer = edited.model, edited.tokenizer
    expected = ask_texts(edited)
    rows = [tuple(tokenizer(prompt)["input_ids"]) for prompt in PROMPTS]
    first = [
        edited.responder().loglikelihood([Statement(prompt, "Lyon")])[0].best[0]
        for prompt in PROMPTS
    ]
    with torch.no_grad():
        for left in (False, True):
            ids, mask = pad(rows, left=left)
            places = {"position_ids": (mask.long().cumsum(1) - 1).clamp_min(0)}
            if family == "bloom":  # distances come from the mask
                places = {}
            logits = model(input_ids=ids, attention_mask=mask, **places).logits
            ends = [-1 if left else len(row) - 1 for row in rows]
            assert logits[torch.arange(len(rows)), torch.tensor(ends)].argmax(-1).tolist() == first
        ids, mask = pad(rows, left=True)
        for use_cache in (True, False):
            steps = NEW_TOKENS if use_cache or not CASES[name].by_prompt else 1
            options = {"max_new_tokens": steps, "do_sample": False, "use_cache": use_cache}
            wanted = expected if steps == NEW_TOKENS else ask_texts(edited, steps)
            alone = [model.generate(torch.tensor([row]), **options)[0, len(row) :] for row in rows]
            assert [text_of(tokenizer, one) for one in alone] == wanted
            output = model.generate(input_ids=ids, attention_mask=mask, **options)
            assert [text_of(tokenizer, one[ids.shape[1] :]) for one in output] == wanted


def assert_two_stacks_answer_others(edited: EditedModel) -> None:
    """Compare calls with given answers and generations, with and without a cache."""
    model, tokenizer = edited.model, edited.tokenizer
    expected = ask_texts(edited)
    rows = [tuple(tokenizer(prompt)["input_ids"]) for prompt in PROMPTS]
    answer = tuple(tokenizer("Lyon", add_special_tokens=False)["input_ids"])
    statements = [Statement(prompt, "Lyon", "") for prompt in PROMPTS]
    forced = edited.responder().loglikelihood(statements)
    assert all(score.tokens == answer for score in forced)
    labels = torch.tensor([answer] * len(rows))
    # T5 has no absolute positions, so that it reads text that is padded on the left alike.
    sides = (False, True) if model.config.model_type == "t5" else (False,)
    with torch.no_grad():
        for left in sides:
            ids, mask = pad(rows, left=left)
            logits = model(input_ids=ids, attention_mask=mask, labels=labels).logits
            assert [tuple(row) for row in logits.argmax(-1).tolist()] == [
                score.best for score in forced
            ]
            for use_cache in (True, False):
                options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "use_cache": use_cache}
                if model.generation_config.forced_eos_token_id is not None:
                    options["forced_eos_token_id"] = None
                output = model.generate(input_ids=ids, attention_mask=mask, **options)
                assert [text_of(tokenizer, one[1:]) for one in output] == expected
                alone = [model.generate(torch.tensor([row]), **options)[0, 1:] for row in rows]
                assert [text_of(tokenizer, one) for one in alone] == expected


def text_of(tokenizer: Any, ids: Tensor) -> str:
    """Decode generated ids up to the end token."""
    listed = ids.tolist()
    end = listed.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in listed else len(listed)
    return str(tokenizer.decode(listed[:end], skip_special_tokens=True)).strip()


@some(lambda case: case.in_modules)
def test_a_copy_of_the_edited_model_has_its_own_state_dict(name: str, family: str) -> None:
    edited = handle(name, family)
    plain = model_of(family)
    assert list(edited.model.state_dict()) == list(plain.state_dict())
    ids = torch.tensor([[1, 7, 9, 11]])
    twin = copy.deepcopy(edited.model)
    with_edits = logits_of(edited.model, ids)
    edited.undo()
    assert torch.equal(logits_of(edited.model, ids), logits_of(plain, ids))
    torch.testing.assert_close(logits_of(twin, ids), with_edits)


# ---------------------------------------------------------------------------------------- shipping


@every
def test_an_export_that_is_loaded_says_the_same(name: str, family: str, tmp_path: Path) -> None:
    edited = handle(name, family)
    before, said, few = snapshot(edited.model), ask(edited), PROMPTS[:2]
    folder = edited.export(tmp_path / "shipped")
    assert_unchanged(edited.model, before)
    assert ask(edited) == said
    model = model_of(family)
    clean = snapshot(model)
    loaded = lightning_edit.load_edited(folder, model, tokenizer_of(family))
    assert ask(loaded) == said
    fourth = {"id": "d", "prompt": "The mother tongue of Danielle Darrieux is", "target": "Italian"}
    assert ask(loaded.undo("b").edit(fourth), few) == ask(edited.undo("b").edit(fourth), few)
    loaded.undo()
    assert_unchanged(model, clean)


_IN_A_CLEAN_PROCESS = """
import sys
from pathlib import Path
import lightning_edit
from tests.editors import test_runtime_contract as contract

for folder in map(Path, sys.argv[1:]):
    family = folder.name.partition("-")[0]
    model, tokenizer = contract.model_of(family), contract.tokenizer_of(family)
    loaded = lightning_edit.load_edited(folder, model, tokenizer)
    print("said:", repr(contract.ask(loaded)))
"""


@pytest.mark.slow
def test_exports_say_the_same_in_a_clean_process(tmp_path: Path) -> None:
    folders, said = [], []
    for name, case in CASES.items():
        for family in case.families[:1]:
            edited = handle(name, family)
            folders.append(str(edited.export(tmp_path / f"{family}-{len(said)}")))
            said.append(f"said: {ask(edited)!r}")
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", _IN_A_CLEAN_PROCESS, *folders],
        capture_output=True, text=True, check=False, cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [one for one in done.stdout.splitlines() if one.startswith("said: ")] == said
    assert len(said) == len(CASES) - 1  # all but the codebook in a decoder of two stacks
