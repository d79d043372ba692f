"""MeLLo: Zhong et al., MQuAKE, Multi-Hop Questions, EMNLP 2023, arXiv 2305.14795."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from operator import attrgetter

from lightning_edit.editors.prompting.base import PromptingEditor
from lightning_edit.editors.prompting.context import Context
from lightning_edit.editors.prompting.dialogue import (
    DEMONSTRATIONS,
    STOPS,
    Dialogue,
    ended,
    parse,
)
from lightning_edit.editors.prompting.facts import FactMemory
from lightning_edit.edits.delta import Delta
from lightning_edit.inference.generation import LINE_BREAK
from lightning_edit.inference.responder import Question, Responder, Statement, TokenScores

#: Tokens of one sub-question with its answers and fact, to keep room for.
_TURN = 64
#: Tokens of ``Final answer:``, where a dialogue ends without one.
_END = 8


class MeLLo(PromptingEditor):
    """Memory of fact sentences, asked in a dialogue of sub-questions: for multi-hop questions.

    The model divides a question into sub-questions and answers each; the nearest stored fact is
    shown to it, and it says whether that contradicts its answer. With an edit in force every prompt
    is asked so, also a cloze; the four demonstrations in front were written for this library.

    A generated answer is what the model writes behind ``Final answer:``. A scored answer is scored
    in the same place, behind the dialogue that the prompt leads to. A dialogue in which the model
    leaves the format, or asks more than ``steps`` sub-questions, has no answer: an empty text is
    generated, answers are scored behind what was said and ``Final answer:``, a warning says so
    once, and ``context_use.failed`` counts it. Small models fail often.

    Args:
        steps: Sub-questions of one dialogue, at most.
        turn_tokens: Tokens of one turn of the model, at most.
        encoder: What finds the fact nearest to a sub-question, see :class:`PromptingEditor`; the
            paper takes ``facebook/contriever-msmarco``, with the dot product.
        answer_room: See :class:`PromptingEditor`.
    """

    def __init__(
        self,
        steps: int = 4,
        turn_tokens: int = 256,
        encoder: str = "lexical",
        answer_room: int = 24,
    ) -> None:
        super().__init__(encoder, answer_room)
        self.steps = steps
        self.turn_tokens = turn_tokens

    def require_arguments(self) -> None:
        """Check the arguments of this editor."""
        super().require_arguments()
        self.require(self.steps >= 1, "steps", "1 or more", self.steps)
        self.require(self.turn_tokens >= 1, "turn_tokens", "1 or more", self.turn_tokens)

    def on_bind(self) -> None:
        """Make the memory of facts and dialogues, empty."""
        super().on_bind()
        self._dialogues: dict[str, Dialogue | None] = {}
        self.memory.on_change(self._dialogues.clear)

    def new_memory(self) -> FactMemory:
        """Return an empty memory of fact sentences: sub-questions are compared with whole facts."""
        return FactMemory(self._make_index, attrgetter("sentence"))

    def context(self, prompt: str, memory: FactMemory) -> Context:
        """Put the demonstrations before a question: the dialogue's beginning."""
        return Context(f"Question: {prompt.strip()}\n", DEMONSTRATIONS)

    def responder(self, in_force: Sequence[Delta], batch_size: int = 64) -> Responder:
        """Return what holds the dialogues and asks behind them.

        Args:
            in_force: The edits in force; the memory that the ledger fills is what is read.
            batch_size: Rows per forward pass.
        """
        base = super(PromptingEditor, self).responder(in_force, batch_size)
        return DialogueResponder(base, self)

    # ----------------------------------------------------------------------------------- dialogue

    def dialogues(self, prompts: Sequence[str], inner: Responder) -> dict[str, Dialogue | None]:
        """Hold the dialogues of prompts, each once until the facts change.

        Args:
            prompts: The prompts.
            inner: Asks the model.

        Returns:
            By prompt its dialogue; ``None``: there is no room for one, so it is asked as it is.
        """
        starts: dict[str, str] = {}
        for prompt in dict.fromkeys(prompts):
            if prompt in self._dialogues:
                continue
            most = self.room.most
            spare = 0 if most is None else min(self.steps * _TURN, most // 2)
            told = self._count(prompt, self._fit(prompt, None if most is None else most - spare))
            if told is None:
                self._dialogues[prompt] = None
            else:
                starts[prompt] = told.prompt
        self._dialogues |= self._hold(starts, inner)
        return {prompt: self._dialogues[prompt] for prompt in prompts}

    def _hold(self, starts: dict[str, str], inner: Responder) -> dict[str, Dialogue]:
        """Hold dialogues side by side; each is as if it were held alone."""
        found: dict[str, Dialogue] = {}
        going: dict[str, tuple[str, tuple[str, ...]]] = {
            prompt: (start, ()) for prompt, start in starts.items()
        }
        read = dict.fromkeys(starts, 0)
        for step in range(self.steps + 1):
            fits = {prompt: said for prompt, said in going.items() if self._has_room(said[0])}
            found |= {one: ended(*said) for one, said in going.items() if one not in fits}
            asked = [Question(said[0], self.turn_tokens) for said in fits.values()]
            for prompt, (transcript, _) in fits.items():
                read[prompt] += self.room.tokens(transcript)
            texts = inner.generate_until(asked, STOPS)
            going = {}
            for (prompt, (transcript, facts)), text in zip(fits.items(), texts, strict=True):
                turn = parse(text)
                said = transcript + turn.text
                if not self._has_room(said):
                    found[prompt] = ended(transcript, facts)
                elif turn.kind == "final":
                    found[prompt] = Dialogue(said, True, facts)
                elif turn.kind == "unparseable" or step == self.steps:
                    found[prompt] = ended(said if turn.text else transcript, facts)
                else:
                    (fact,) = self.memory.nearest(turn.subquestion, 1)
                    stop = "" if fact.sentence[-1:] in ".!?。！？" else "."
                    shown = f"{said}\nRetrieved fact: {fact.sentence}{stop}\n"
                    going[prompt] = shown, (*facts, fact.sentence)
        failed = [prompt for prompt, one in found.items() if not one.answered]
        self.context_use.failed += len(failed)
        if failed:
            self._warn(
                "failed",
                f"the model left the format of the dialogue about {failed[0][:60]!r}…, which has "
                "no answer: nothing is generated, and given answers are scored behind what is said",
            )
        return {prompt: replace(one, read=read[prompt]) for prompt, one in found.items()}

    def _has_room(self, transcript: str) -> bool:
        most = self.room.most
        return most is None or self.room.tokens(transcript) + _END <= most


class DialogueResponder(Responder):
    """Asks behind dialogues; running text, and all without edits in force, is asked as it is.

    Args:
        inner: Asks the model.
        editor: Holds the dialogues.
    """

    def __init__(self, inner: Responder, editor: MeLLo) -> None:
        self.inner = inner
        self.editor = editor

    def loglikelihood(self, statements: Sequence[Statement]) -> list[TokenScores]:
        """Score answers in the place of the final answers of the dialogues."""
        held = self._held([one.prompt for one in statements])
        rows = []
        for one in statements:
            dialogue = held.get(one.prompt)
            rows.append(one if dialogue is None else self._behind(one, dialogue))
        return self.inner.loglikelihood(rows)

    def loglikelihood_rolling(
        self, texts: Sequence[str], max_tokens: int | None = None
    ) -> list[TokenScores]:
        """Score running text as it is."""
        return self.inner.loglikelihood_rolling(texts, max_tokens)

    def generate_until(
        self, questions: Sequence[Question], stop: Sequence[str] = LINE_BREAK
    ) -> list[str]:
        """Return the final answers of the dialogues; nothing where one has none."""
        held = self._held([one.prompt for one in questions])
        rows: list[Question | None] = []
        for one in questions:
            dialogue = held.get(one.prompt)
            if dialogue is None:
                rows.append(one)
            elif dialogue.answered:
                # What follows an answer is the next demonstration.
                rows.append(Question(dialogue.transcript, one.limit))
            else:
                rows.append(None)
        return self._texts(rows, held, stop)

    def added_tokens(self, questions: Sequence[Question]) -> list[int]:
        """Return what the model reads in all turns of each dialogue, beside the question."""
        held = self._held([one.prompt for one in questions])
        tokens, added = self.editor.room.tokens, []
        for one in questions:
            dialogue = held.get(one.prompt)
            if dialogue is None:
                added.append(0)
            else:
                last = tokens(dialogue.transcript) if dialogue.answered else 0
                added.append(dialogue.read + last - tokens(one.prompt))
        return added

    def ask(
        self,
        statements: Sequence[Statement],
        questions: Sequence[Question],
        likely: Collection[Statement] = (),
    ) -> tuple[list[TokenScores], list[str]]:
        """Score answers and continue prompts in one call."""
        if not self.editor.memory.facts:
            return self.inner.ask(statements, questions, likely)
        return super().ask(statements, questions)

    def _texts(
        self,
        rows: Sequence[Question | None],
        held: dict[str, Dialogue | None],
        stop: Sequence[str],
    ) -> list[str]:
        stops = tuple(dict.fromkeys((*stop, *LINE_BREAK))) if held else tuple(stop)
        asked = [row for row in rows if row is not None]
        texts = iter(self.inner.generate_until(asked, stops))
        return ["" if row is None else next(texts) for row in rows]

    def _held(self, prompts: Sequence[str]) -> dict[str, Dialogue | None]:
        if not self.editor.memory.facts:
            return {}
        return self.editor.dialogues(prompts, self.inner)

    def _behind(self, one: Statement, dialogue: Dialogue) -> Statement:
        """Return a statement behind a dialogue, whose separator is its own.

        A long answer takes the room of demonstrations.
        """
        room, transcript = self.editor.room, dialogue.transcript
        positions = room.prompts.limits.positions
        for one_less in DEMONSTRATIONS:
            if positions is None or room.tokens(transcript, one.answer) <= positions:
                break
            transcript = transcript.removeprefix(one_less)
        return Statement(transcript, one.answer)
