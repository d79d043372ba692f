"""Responder of a language model itself: prefix trees, head at answers only, shared passes."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import nn

from lightning_edit.distributed.one_process import ALONE, OneProcess
from lightning_edit.inference.answer_pass import PassBackend, ReadRow
from lightning_edit.inference.encoded_prompts import MOST_TOKENS, EncodedPrompts, parts_of
from lightning_edit.inference.eval_mode import evaluating
from lightning_edit.inference.generation import (
    LINE_BREAK,
    GreedyGenerator,
    PartialContinuation,
    Prompt,
    follow,
)
from lightning_edit.inference.model_call import telling
from lightning_edit.inference.pass_backends import PlainRows
from lightning_edit.inference.pass_layout import PassLayout
from lightning_edit.inference.responder import Question, Responder, Statement, TokenScores
from lightning_edit.inference.teacher_forcing import (
    AnswerRow,
    ForcedAnswer,
    TeacherForcing,
    score_rows,
)
from lightning_edit.models.prompt_encoder import Ids, PromptEncoder, PromptText

#: Minimum number of rows to guess the token after an answer from.
_GUESS_ROWS = 16


class ModelResponder(Responder):
    """Asks a language model itself: prefix trees, head at answers only, generation from scoring.

    The model is read at every call, so a responder made before an edit also asks the edited model.

    Args:
        model: A Hugging Face language model, decoder-only or encoder-decoder.
        tokenizer: Its fast tokenizer, or a prompt encoder.
        batch_size: Rows per forward pass; results do not depend on it.
        layout: Layout of texts in forward passes; ``None``: chosen here, from the current model.
        backend: How rows are laid out, in place of the layout's.
    """

    ranks: OneProcess = ALONE
    """The processes that share the passes of a question, see :meth:`shared_among`."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        batch_size: int = 64,
        layout: PassLayout | None = None,
        backend: PassBackend | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1; got {batch_size}")
        self.model: Any = model
        self.prompts = PromptEncoder.for_model(model, tokenizer)
        self.batch_size = batch_size
        self.backend = backend
        self.layout = PassLayout.choose(model, self.shares_prompts) if layout is None else layout

    @contextmanager
    def shared_among(self, ranks: OneProcess) -> Iterator[None]:
        """Share the passes of every question inside the block with other processes.

        Args:
            ranks: The processes; all of them ask the same.
        """
        self.ranks = ranks
        try:
            yield
        finally:
            self.ranks = ALONE

    def observe(self, prompt_ends: Sequence[int] | None) -> AbstractContextManager[None]:
        """Return the context in which the model is called; told where prompts end.

        Adapters on the model that decide once a prompt
        (:mod:`~lightning_edit.inference.model_call`) are told here. An editor that decides in
        another way overrides this, sets :attr:`shares_prompts` to false, and decides at these
        positions in the first call of the model within the context; in a generation the calls with
        a cache that follow keep the decision.

        Args:
            prompt_ends: Position of the last token of the prompt in each line of the input, padded
                on either side; of an encoder's input with two stacks. ``None`` for running text and
                where prompts are shared.
        """
        return telling(self.model, prompt_ends)

    def added_tokens(self, questions: Sequence[Question]) -> list[int] | None:
        """Return zeros: the model reads prompts as they are."""
        return [0] * len(questions)

    def loglikelihood(self, statements: Sequence[Statement]) -> list[TokenScores]:
        """Score given answers by teacher forcing; equal rows are computed once."""
        return self.ask(statements, ())[0]

    def loglikelihood_rolling(
        self, texts: Sequence[str], max_tokens: int | None = None
    ) -> list[TokenScores]:
        """Score running text; see :meth:`Responder.loglikelihood_rolling`.

        Raises:
            ValueError: For an encoder-decoder model, which assigns no probability to running text.
        """
        if self.prompts.two_stacks:
            raise ValueError(
                f"{type(self.model).__name__} is an encoder-decoder, which assigns no probability "
                "to running text; ask a decoder-only model"
            )
        rows: list[ReadRow] = []
        targets: list[tuple[int, Ids]] = []
        for number, text in enumerate(texts):
            ids = self.prompts.running(text, max_tokens)
            for row, predicted in _windows(ids, self.prompts.limits.positions):
                rows.append(row)
                targets.append((number, predicted))
        with self._running_model():
            found = score_rows(
                self.model,
                rows,
                [predicted for _, predicted in targets],
                PlainRows(),
                self.batch_size,
                self._running,
            )
        joined = [TokenScores((), (), ()) for _ in texts]
        for (number, predicted), (best, nlls) in zip(targets, found, strict=True):
            old = joined[number]
            joined[number] = TokenScores(old.tokens + predicted, old.best + best, old.nlls + nlls)
        return joined

    def generate_until(
        self, questions: Sequence[Question], stop: Sequence[str] = LINE_BREAK
    ) -> list[str]:
        """Continue prompts greedily with a KV cache; equal prompts are continued once."""
        return self._ask((), questions, (), stop)[1]

    def ask(
        self,
        statements: Sequence[Statement],
        questions: Sequence[Question],
        likely: Collection[Statement] = (),
    ) -> tuple[list[TokenScores], list[str]]:
        """Score answers, and start continuations from the passes that scored likely answers."""
        return self._ask(statements, questions, likely, LINE_BREAK)

    def _ask(
        self,
        statements: Sequence[Statement],
        questions: Sequence[Question],
        likely: Collection[Statement],
        stop: Sequence[str],
    ) -> tuple[list[TokenScores], list[str]]:
        rows = self._rows([*statements, *likely])
        prompts = self._generation_prompts(questions)
        with self._running_model():
            if self.prompts.two_stacks:
                forced, texts = self._ask_two_stacks(
                    [rows[one] for one in statements], prompts, stop
                )
            else:
                forced, texts = self._ask_decoder(
                    [rows[one] for one in statements], prompts, [rows[one] for one in likely], stop
                )
        scores = [_scores(rows[one], forced[rows[one]]) for one in statements]
        return scores, [texts[prompt] for prompt in prompts]

    def _ask_decoder(
        self,
        rows: Sequence[AnswerRow],
        prompts: Sequence[Prompt],
        likely: Sequence[AnswerRow],
        stop: Sequence[str],
    ) -> tuple[dict[AnswerRow, ForcedAnswer], dict[Prompt, str]]:
        """Score rows of a decoder, and start continuations from the passes that did."""
        generator = self._generator(stop)
        end = self.layout.after_answer
        ahead: dict[AnswerRow, Ids] = {}
        if prompts and generator.is_plain:
            ahead = dict.fromkeys(likely, end)
        asked = set(rows) | set(ahead)
        forced = self._teacher_forcing()(asked, ahead) if asked else {}
        argmax = {(row[0], row[1] + end): forced[row].chosen for row in ahead}
        known = _partial_continuations(generator, set(prompts), argmax)
        return forced, generator.texts(known) if known else {}

    def _ask_two_stacks(
        self, rows: Sequence[AnswerRow], prompts: Sequence[Prompt], stop: Sequence[str]
    ) -> tuple[dict[AnswerRow, ForcedAnswer], dict[Prompt, str]]:
        """Score rows and continue prompts; what the encoder makes of a prompt serves both."""
        asked: dict[Ids, tuple[set[AnswerRow], set[Prompt]]] = {}
        for row in rows:
            asked.setdefault(row[0], (set(), set()))[0].add(row)
        for prompt in prompts:
            asked.setdefault(prompt[0], (set(), set()))[1].add(prompt)
        forced: dict[AnswerRow, ForcedAnswer] = {}
        texts: dict[Prompt, str] = {}
        shares = self.layout.kind == "encoded_once" and self.backend is None
        if shares:
            self.layout.require(self.model)
        for part in parts_of(asked, MOST_TOKENS) if shares else [asked]:
            encoded = EncodedPrompts(self.model, part, self.batch_size) if shares else None
            answers = {row for some, _ in part.values() for row in some}
            if answers:
                forced |= self._teacher_forcing(encoded)(answers, {})
            begun = {one: PartialContinuation() for _, some in part.values() for one in some}
            if begun:
                texts |= self._generator(stop, encoded).texts(begun)
        return forced, texts

    def guess_after_answer(self, statements: Sequence[Statement]) -> Ids:
        """Guess the token that the model generates after an answer, such as a full stop.

        A correct guess saves generation steps, and every teacher-forced pass verifies it. But a
        pass over another token rounds differently, so a run makes the guess once, on the pristine
        model, and keeps it in its :class:`~lightning_edit.inference.pass_layout.PassLayout`.

        Args:
            statements: Prompts with likely answers, all those of a run.

        Returns:
            The token that most often follows; empty if that is the end of the text, or if there are
            fewer than 16 answers.
        """
        generator = GreedyGenerator(self.model, self.prompts, self.batch_size)
        if not generator.is_plain or self.prompts.two_stacks:
            return ()
        rows = set(self._rows(statements).values())
        if len(rows) < _GUESS_ROWS:
            return ()
        sample = dict.fromkeys(sorted(rows)[:: len(rows) // _GUESS_ROWS], ())
        force = self._teacher_forcing()
        with self._running_model():
            forced = force(sample, sample)
        counts = Counter(one.chosen[-1] for row, one in forced.items() if one.best == row[1])
        # Ties go to the lowest token id, so that the order of counting does not matter.
        token = min(counts, key=lambda token: (-counts[token], token), default=None)
        return () if token is None or token in generator.ends else (token,)

    def _teacher_forcing(self, encoded: EncodedPrompts | None = None) -> TeacherForcing:
        return TeacherForcing(
            self.model,
            self.batch_size,
            self.layout,
            self.backend,
            self.observe,
            self.ranks,
            encoded,
        )

    def _generator(
        self, stop: Sequence[str], encoded: EncodedPrompts | None = None
    ) -> GreedyGenerator:
        return GreedyGenerator(
            self.model,
            self.prompts,
            self.batch_size,
            stop,
            self.observe,
            self.ranks,
            self.shares_prompts,
            encoded,
            self.layout.long_prefixes and self.backend is None,
        )

    @contextmanager
    def _running_model(self) -> Iterator[None]:
        with evaluating(self.model), self.layout.multiplied(self.model):
            yield

    def _running(self, prompt_ends: Sequence[int] | None) -> AbstractContextManager[None]:
        return self.observe(None)

    def _rows(self, statements: Sequence[Statement]) -> dict[Statement, AnswerRow]:
        unique = list(dict.fromkeys(statements))
        texts = (PromptText(one.prompt, one.answer, None, one.separator) for one in unique)
        encoded = self.prompts.encode(texts)
        return {one: (text.prompt, text.answer) for one, text in zip(unique, encoded, strict=True)}

    def _generation_prompts(self, questions: Sequence[Question]) -> list[Prompt]:
        texts = (PromptText(one.prompt, None, None, one.separator) for one in questions)
        room = self.prompts.limits.positions
        prompts = []
        for one, text in zip(questions, self.prompts.encode(texts), strict=True):
            left = one.limit if room is None else min(one.limit, room - len(text.prompt))
            prompts.append((text.prompt, max(1, left)))
        return prompts


def _windows(ids: Ids, room: int | None) -> list[tuple[ReadRow, Ids]]:
    """Split a text into windows that predict each token once, with as much context as there is."""
    found = []
    step = len(ids) if room is None else room
    for start in range(1, len(ids), max(1, step)):
        end = min(start + step, len(ids))
        context = ids[max(0, end - 1 - step) : start]
        found.append((ReadRow(context, ids[start : end - 1]), ids[start:end]))
    return found


def _scores(row: AnswerRow, forced: ForcedAnswer) -> TokenScores:
    return TokenScores(row[1], forced.best, forced.nlls)


def _partial_continuations(
    generator: GreedyGenerator, prompts: Set[Prompt], forced: Mapping[AnswerRow, Ids]
) -> dict[Prompt, PartialContinuation]:
    """Return the start of each greedy continuation that the teacher-forced passes determine."""
    prefixes: dict[Ids, Ids] = {}
    for (context, given), chosen in forced.items():
        tokens = follow(given, chosen)
        if len(tokens) > len(prefixes.get(context, ())):
            prefixes[context] = tokens
    return {
        (prompt, limit): generator.begun(prefixes.get(prompt, ()), limit)
        for prompt, limit in prompts
    }
