"""A language model in, the outcome of every probe out.

Outcomes depend neither on the batch size nor on the tokenizer's padding side, and each row's token
limit is its own.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from itertools import islice
from typing import Any, get_args

import torch
from torch import nn

from lightning_edit.evaluation.baseline import Baseline
from lightning_edit.evaluation.outcomes import (
    AnswerScore,
    ProbeScore,
    ScoredProbe,
    compare,
    probes_of,
)
from lightning_edit.exceptions import DataError
from lightning_edit.functional.tokens import encode_pairs, encode_prompts
from lightning_edit.inference.generation import (
    LIMIT_STEP,
    GreedyGenerator,
    Ids,
    PartialContinuation,
    Prompt,
    follow,
)
from lightning_edit.inference.pass_layout import PassLayout
from lightning_edit.inference.teacher_forcing import AnswerRow, TeacherForcing
from lightning_edit.types import EditRequest, Mode

__all__ = [
    "AnswerScore",
    "Baseline",
    "ProbeScore",
    "ScoredProbe",
    "Scorer",
    "compare",
    "evaluate",
    "evaluating",
    "probes_of",
]

#: Tokens a model may generate beyond the longest accepted answer, e.g. "the city of" before it.
_SLACK = 8
#: Rows from which what follows an answer is guessed.
_SAMPLE = 16


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch a model to evaluation without gradients, and every module back to its mode afterwards.

    Args:
        model: Any model; one that is being trained finds its dropout as it left it.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


class Scorer:
    """Puts probes to one language model.

    The model is read at every call, so a scorer made before an edit measures the edited model too.

    Args:
        model: A Hugging Face language model, decoder-only or encoder-decoder.
        tokenizer: Its fast tokenizer, of any padding side.
        batch_size: Rows that go through the model together; results do not depend on it.
        modes: ``tf``: given answers, teacher forced. ``gen``: greedy generation.
        max_new_tokens: Most tokens to generate. ``None``: for each probe its longest accepted
            answer plus 8, rounded up to a multiple of 8.
        layout: How texts are laid out in forward passes; ``None``: chosen here, from the model as
            it is now. A run that is resumed gives the one it began with.

    Raises:
        ValueError: On an unknown mode or a batch size below 1.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        batch_size: int = 64,
        modes: Sequence[Mode] = ("tf", "gen"),
        max_new_tokens: int | None = None,
        layout: PassLayout | None = None,
    ) -> None:
        if not modes or not set(modes) <= set(get_args(Mode)):
            raise ValueError(f"`modes` must be some of tf and gen; got {tuple(modes)}")
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1; got {batch_size}")
        self.model: Any = model
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.modes = tuple(modes)
        self.max_new_tokens = max_new_tokens
        self.layout = PassLayout.choose(model) if layout is None else layout

    def score(self, probes: Sequence[ScoredProbe]) -> list[ProbeScore]:
        """Put every probe to the model; rows that repeat are computed once.

        Args:
            probes: Questions and whose they are, see
                :func:`~lightning_edit.evaluation.outcomes.probes_of`.

        Returns:
            One outcome a probe, in order, not yet compared with a pristine model.

        Raises:
            DataError: If a text cannot be tokenised or does not fit into the model.
        """
        own = self._prompt_ids(probes) if self._two_stacks or "gen" in self.modes else {}
        pairs = self._pairs(probes, own)
        prompts = [self._prompt(item, own, pairs) if own else None for item in probes]
        writer = GreedyGenerator(self.model, self.tokenizer, self.batch_size, self._room)
        force = TeacherForcing(self.model, self.batch_size, self.layout)
        end = self.layout.after_answer
        with evaluating(self.model):
            ahead = dict.fromkeys(_first(probes, pairs), end) if self._tells(writer) else {}
            rows = set(pairs.values()) if "tf" in self.modes else set(ahead)
            forced = force(rows, ahead)
            texts: dict[Prompt, str] = {}
            if "gen" in self.modes:
                told = {(row[0], row[1] + end): forced[row].chosen for row in ahead}
                asked = {prompt for prompt in prompts if prompt is not None}
                texts = writer.texts(_known(writer, asked, told))
        if "tf" not in self.modes:
            forced = {}
        scores = []
        for item, prompt in zip(probes, prompts, strict=True):
            answers = {
                text: AnswerScore(text, pair[1], forced[pair].best, forced[pair].nlls)
                for text in _texts(item)
                if (pair := pairs[item.probe.prompt, text]) in forced
            }
            scores.append(
                ProbeScore(
                    edit_id=item.edit_id,
                    kind=item.probe.kind,
                    prompt=item.probe.prompt,
                    answers=item.probe.answers,
                    expect=item.probe.expect,
                    forced=tuple(answers[text] for text in item.probe.answers if text in answers),
                    contrast=None if item.contrast is None else answers.get(item.contrast),
                    generated=None if prompt is None else texts.get(prompt),
                    case=item.case,
                    group=item.probe.group,
                )
            )
        return scores

    def score_each(self, units: Sequence[Sequence[ScoredProbe]]) -> list[list[ProbeScore]]:
        """Put groups of probes to the model, all of them together.

        Args:
            units: Probes that belong together, such as those of one request.

        Returns:
            The outcomes of each group.
        """
        scores = iter(self.score([probe for unit in units for probe in unit]))
        return [list(islice(scores, len(unit))) for unit in units]

    # ------------------------------------------------------------------------------- tokenising

    @property
    def _two_stacks(self) -> bool:
        return bool(self.model.config.is_encoder_decoder)

    def _prompt_ids(self, probes: Sequence[ScoredProbe]) -> dict[str, Ids]:
        """Return the tokens of each prompt by itself."""
        prompts = list(dict.fromkeys(item.probe.prompt for item in probes))
        listed = encode_prompts(self.tokenizer, [prompt.rstrip() for prompt in prompts])
        # An encoder expects the closing token; a decoder would take it for the end of the text.
        end = None if self._two_stacks else self.tokenizer.eos_token_id
        return {
            prompt: tuple(ids[:-1] if len(ids) > 1 and ids[-1] == end else ids)
            for prompt, ids in zip(prompts, listed, strict=True)
        }

    def _pairs(
        self, probes: Sequence[ScoredProbe], own: Mapping[str, Ids]
    ) -> dict[tuple[str, str], AnswerRow]:
        """Return what the model reads before each answer, and the answer."""
        asked: dict[tuple[str, str], ScoredProbe] = {}
        for item in probes:
            for text in _texts(item):
                asked.setdefault((item.probe.prompt, text), item)
        found = encode_pairs(self.tokenizer, list(asked))
        pairs = {}
        for pair, item in asked.items():
            try:
                context, answer = next(found)
            except ValueError as error:
                raise DataError(f"request {item.edit_id}: {error}") from error
            if self._two_stacks:
                pairs[pair] = own[item.probe.prompt], tuple(answer)
            else:
                self._check_room(item, len(context), len(answer))
                pairs[pair] = tuple(context), tuple(answer)
        return pairs

    def _check_room(self, item: ScoredProbe, context: int, answer: int) -> None:
        if context == 0:
            raise DataError(
                f"request {item.edit_id}: the prompt {item.probe.prompt!r} melts into its answer's "
                "first token, so nothing stands before the answer; make the prompt longer"
            )
        room = self._room
        if room is not None and context + answer > room:
            raise DataError(
                f"request {item.edit_id}: the prompt {item.probe.prompt[:60]!r}… and its answer "
                f"have {context + answer} tokens but the model takes {room}; shorten the prompt"
            )

    @property
    def _room(self) -> int | None:
        """Positions of a decoder-only model; ``None`` where positions are not limited."""
        if self._two_stacks:
            return None
        return getattr(self.model.config, "max_position_embeddings", None)

    def _prompt(
        self, item: ScoredProbe, own: Mapping[str, Ids], pairs: Mapping[tuple[str, str], AnswerRow]
    ) -> Prompt:
        """Return what a continuation starts from, and how many tokens it may have."""
        prompt = own[item.probe.prompt]
        longest = max(len(pairs[item.probe.prompt, text][1]) for text in item.probe.answers)
        limit = self.max_new_tokens or -(-(longest + _SLACK) // LIMIT_STEP) * LIMIT_STEP
        if self._room is not None:
            limit = max(1, min(limit, self._room - len(prompt)))
        return prompt, limit

    # ---------------------------------------------------------------------------------- running

    def _tells(self, writer: GreedyGenerator) -> bool:
        """Say whether a forced pass tells how a continuation begins: both read the same prompt."""
        return "gen" in self.modes and not self._two_stacks and writer.is_plain

    def guess_after_answer(self, probes: Sequence[ScoredProbe]) -> Ids:
        """Guess what the model writes behind an answer, such as a full stop, from a few probes.

        The guess saves generating where it is right, and every forced pass checks it; but passes
        that read another token have other last digits. So a run makes it once, on the pristine
        model, and keeps it in its :class:`~lightning_edit.inference.pass_layout.PassLayout`.

        Args:
            probes: All questions of a run.

        Returns:
            The token that most often follows, or nothing: where that is the end of the text, where
            fewer than 16 answers are known, and where nothing is generated.

        Raises:
            DataError: As :meth:`score`.
        """
        writer = GreedyGenerator(self.model, self.tokenizer, self.batch_size, self._room)
        if not self._tells(writer):
            return ()
        rows = _first(probes, self._pairs(probes, {}))
        if len(rows) < _SAMPLE:
            return ()
        some = dict.fromkeys(sorted(rows)[:: len(rows) // _SAMPLE], ())
        with evaluating(self.model):
            seen = TeacherForcing(self.model, self.batch_size, self.layout)(some, some)
        behind = Counter(one.chosen[-1] for row, one in seen.items() if one.best == row[1])
        # Of equally many the lowest number, whatever order they were counted in.
        token = min(behind, key=lambda token: (-behind[token], token), default=None)
        return () if token is None or token in writer.ends else (token,)


def evaluate(
    scorer: Scorer, requests: Iterable[EditRequest], baseline: Baseline | None = None
) -> list[ProbeScore]:
    """Score every probe of some requests.

    Args:
        scorer: The model, and how it is asked.
        requests: Whose probes are scored.
        baseline: Outcomes on the pristine model to compare with; ``None`` to make the baseline.

    Returns:
        One outcome a probe, requests in order.

    Raises:
        DataError: If a text cannot be tokenised, or the baseline lacks a question.
    """
    scores = scorer.score([probe for request in requests for probe in probes_of(request)])
    return scores if baseline is None else baseline.compare(scores)


def _texts(item: ScoredProbe) -> list[str]:
    """Return every answer whose probability is wanted."""
    return [*item.probe.answers, *([] if item.contrast is None else [item.contrast])]


def _first(
    probes: Iterable[ScoredProbe], pairs: Mapping[tuple[str, str], AnswerRow]
) -> set[AnswerRow]:
    """Return the rows that are read behind their answer too.

    Where a model does not say the first answer, it often says the one that should lose.
    """
    return {
        pairs[item.probe.prompt, text]
        for item in probes
        for text in (item.probe.answers[0], item.contrast)
        if text is not None
    }


def _known(
    writer: GreedyGenerator, prompts: Set[Prompt], forced: Mapping[AnswerRow, Ids]
) -> dict[Prompt, PartialContinuation]:
    """Return how each continuation begins, as far as some forced answer tells."""
    told: dict[Ids, Ids] = {}
    for (context, given), chosen in forced.items():
        tokens = follow(given, chosen)
        if len(tokens) > len(told.get(context, ())):
            told[context] = tokens
    return {(prompt, limit): writer.begun(told.get(prompt, ()), limit) for prompt, limit in prompts}
