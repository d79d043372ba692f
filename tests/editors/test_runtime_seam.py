"""Two run-time editors on the documented seam: a text before prompts, and a module's state."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_edit.editors.base import Editor
from lightning_edit.edits.delta import Delta
from lightning_edit.edits.ledger import Ledger
from lightning_edit.evaluation.scorer import Scorer, evaluate
from lightning_edit.exceptions import LedgerError
from lightning_edit.inference.model_responder import ModelResponder
from lightning_edit.inference.responder import Question, Responder, Statement, TokenScores
from lightning_edit.session.trainer import EditTrainer
from lightning_edit.types import EditBatch, EditRequest
from tests.models.tiny import build_tiny, build_tokenizer
from tests.toy import ToyData, toy_model, toy_tokenizer

REQUESTS = [
    EditRequest("a", "The capital of France is", "Lyon", "France"),
    EditRequest("b", "The capital of Italy is", "Arles", "Italy"),
    EditRequest("c", "Marseille lies in", "Italy", "Marseille"),
]


class Facts:
    """Runtime of :class:`Told`: the texts of the edits in force."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def install(self, in_force: Sequence[Delta]) -> None:
        self.texts = {name: text for one in in_force for name, text in one.prompts.items()}


class Told(Editor):
    """Puts the texts of all edits before every prompt."""

    edits_weights = False
    batched = False

    def on_bind(self) -> None:
        self.facts = Facts()

    def edit(self, batch: EditBatch) -> Delta:
        return Delta(batch.ids, prompts={r.id: f"{r.prompt} {r.target}. " for r in batch.requests})

    def runtime(self) -> Facts:
        return self.facts

    def responder(self, in_force: Sequence[Delta], batch_size: int = 64) -> Responder:
        return _ToldResponder(self.facts, super().responder(in_force, batch_size))


class _ToldResponder(Responder):
    def __init__(self, facts: Facts, inner: Responder) -> None:
        self.facts, self.inner = facts, inner

    def _told(self, prompt: str) -> str:
        return "".join(self.facts.texts.values()) + prompt

    def loglikelihood(self, statements: Sequence[Statement]) -> list[TokenScores]:
        return self.inner.loglikelihood(
            [s._replace(prompt=self._told(s.prompt)) for s in statements]
        )

    def loglikelihood_rolling(
        self, texts: Sequence[str], max_tokens: int | None = None
    ) -> list[TokenScores]:
        return self.inner.loglikelihood_rolling(texts, max_tokens)

    def generate_until(
        self, questions: Sequence[Question], stop: Sequence[str] = ("\n",)
    ) -> list[str]:
        told = [q._replace(prompt=self._told(q.prompt)) for q in questions]
        return self.inner.generate_until(told, stop)


class Codebook(nn.Module):
    """A block that adds the value of an entry to lines whose prompt ends near the entry's key."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.keys: Tensor = torch.zeros(0)
        self.values: Tensor = torch.zeros(0)
        self.ends: Sequence[int] | None = None
        self.chosen: Tensor | None = None

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        output = self.block(hidden, *args, **kwargs)
        found = output[0] if isinstance(output, tuple) else output
        if self.ends is not None and self.chosen is None:
            at = hidden[torch.arange(len(hidden)), torch.tensor(self.ends)]
            near = torch.cdist(at, self.keys)
            hit = near.min(1).values < 1e-3
            self.chosen = torch.where(hit[:, None], self.values[near.argmin(1)], 0.0)
        if self.chosen is not None:
            found = found + self.chosen[:, None]
        return (found, *output[1:]) if isinstance(output, tuple) else found


class CodebookRuntime:
    """Puts a codebook in the place of one block while there are edits in force."""

    def __init__(self, model: Any, block: int) -> None:
        self.layers, self.block = model.transformer.h, block
        self.book: Codebook | None = None

    def install(self, in_force: Sequence[Delta]) -> None:
        own = self.layers[self.block]
        if self.book is not None:
            own, self.book = self.book.block, None
            self.layers[self.block] = own
        if len(in_force):
            self.book = Codebook(own).eval()
            self.book.keys = torch.cat([one.state["key"] for one in in_force])
            self.book.values = torch.cat([one.state["value"] for one in in_force])
            self.layers[self.block] = self.book


class _CodebookResponder(ModelResponder):
    shares_prompts = False
    runtime: CodebookRuntime

    @contextmanager
    def observe(self, prompt_ends: Sequence[int] | None) -> Iterator[None]:  # type: ignore[override]  # a context manager
        book = self.runtime.book
        if book is not None:
            book.ends, book.chosen = prompt_ends, None
        yield
        if book is not None:
            book.ends = book.chosen = None


class Book(Editor):
    """Learns nothing: keys are the states at prompts' ends, values push one answer token."""

    edits_weights = False
    batched = False
    BLOCK = 1

    def on_bind(self) -> None:
        self.own = CodebookRuntime(self.language_model, self.BLOCK)

    def edit(self, batch: EditBatch) -> Delta:
        keys, values = [], []
        block = self.language_model.transformer.h[self.BLOCK]
        block = block.block if isinstance(block, Codebook) else block
        for one in batch.encoded:
            seen: list[Tensor] = []
            handle = block.register_forward_pre_hook(lambda _, args, s=seen: s.append(args[0]))
            with torch.no_grad():
                self.language_model(torch.tensor([one.prompt_ids]))
            handle.remove()
            keys.append(seen[0][0, -1])
            head = self.language_model.get_output_embeddings().weight
            values.append(200.0 * head[one.target_ids[0]].detach())
        return Delta(batch.ids, state={"key": torch.stack(keys), "value": torch.stack(values)})

    def runtime(self) -> CodebookRuntime:
        return self.own

    def responder(self, in_force: Sequence[Delta], batch_size: int = 64) -> Responder:
        found = _CodebookResponder(self.language_model, self.prompts, batch_size)
        found.runtime = self.own
        return found


def bound(kind: type[Editor]) -> tuple[Any, Any, Editor]:
    model, tokenizer = build_tiny("gpt2"), build_tokenizer(bos=True)
    return model, tokenizer, kind().bind(model, tokenizer)


@pytest.mark.parametrize("kind", [Told, Book])
def test_an_undo_in_the_middle_equals_never_having_edited(kind: type[Editor]) -> None:
    model, tokenizer, editor = bound(kind)
    handle = editor.edit_model(model, tokenizer, REQUESTS)
    handle.undo("b")
    scores = evaluate(
        Scorer(model, tokenizer, responder=editor.responder(handle.ledger.in_force)), REQUESTS
    )
    other_model, _, other = bound(kind)
    twin = other.edit_model(other_model, tokenizer, [REQUESTS[0], REQUESTS[2]])
    expected = Scorer(other_model, tokenizer, responder=other.responder(twin.ledger.in_force))
    assert scores == evaluate(expected, REQUESTS)
    handle.undo()
    plain = build_tiny("gpt2")
    ids = torch.tensor([[1, 7, 9, 11]])
    assert torch.equal(model(ids).logits, plain(ids).logits)
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]


def test_a_codebook_decides_once_a_prompt_in_any_batch_and_generates_what_is_forced() -> None:
    model, tokenizer, editor = bound(Book)
    handle = editor.edit_model(model, tokenizer, REQUESTS)
    responder = editor.responder(handle.ledger.in_force)
    others = ["The river Rhône flows through", "Lyon", "The capital of France is in"]
    prompts = [*(r.prompt for r in REQUESTS), *others]
    questions = [Question(prompt, 8) for prompt in prompts]
    together = responder.generate_until(questions, ())
    assert together == [responder.generate_until([one], ())[0] for one in questions]
    assert handle.generate(prompts[0], 8) == together[0]
    statements = [Statement(p, t) for p, t in zip(prompts, together, strict=True) if t]
    scores = responder.loglikelihood(statements)
    for one, score in zip(statements, scores, strict=True):
        assert (
            score == responder.loglikelihood([one])[0]
            or score.best == responder.loglikelihood([one])[0].best
        )
    bare = ModelResponder(build_tiny("gpt2"), tokenizer, layout=responder.layout)
    assert responder.generate_until(questions[3:], ()) == bare.generate_until(questions[3:], ())
    for request in REQUESTS:
        (score,) = responder.loglikelihood([Statement(request.prompt, request.target)])
        assert score.best[0] == score.tokens[0]
    assert [s.tokens for s in bare.loglikelihood(statements)] == [s.tokens for s in scores]


def test_a_session_asks_through_the_responder_and_a_bare_ledger_refuses(tmp_path: Path) -> None:
    model, tokenizer = toy_model(), toy_tokenizer()
    editor = Told().bind(model, tokenizer)
    run = tmp_path / "run"
    trainer = EditTrainer(logger=False, enable_progress_bar=False)
    trainer.edit(editor, ToyData(3), protocol="single", run=str(run))
    assert (run / "results.json").exists()
    delta = editor.edit(_batch(editor))
    with pytest.raises(LedgerError, match="acts at run time"):
        Ledger(model, editor).commit(delta, ())


def _batch(editor: Editor) -> EditBatch:
    from lightning_edit.edits.encoding import encode_batch

    return encode_batch(editor.prompts, [EditRequest("z", "the capital of land1 is", "city2")])
