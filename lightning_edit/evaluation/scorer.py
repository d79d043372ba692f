"""Probe scoring with teacher forcing and greedy generation.

Outcomes depend neither on the batch size nor on the tokenizer's padding side, and each row has its
own token limit.
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

#: New tokens allowed beyond the longest accepted answer, e.g. for "the city of" before it.
_EXTRA_TOKENS = 8
#: Minimum number of rows to guess the token after an answer from.
_GUESS_ROWS = 16


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run a block in eval mode without gradients, and restore every module's mode afterwards.

    Args:
        model: Any model; in training, the mode of each dropout module is restored.
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
    """Probe scorer of one language model: teacher-forced answers and greedy generations.

    The model is read at every call, so a scorer made before an edit also scores the edited model.

    Args:
        model: A Hugging Face language model, decoder-only or encoder-decoder.
        tokenizer: Its fast tokenizer, of any padding side.
        batch_size: Rows per batch; results do not depend on it.
        modes: ``tf``: given answers under teacher forcing. ``gen``: greedy generation.
        max_new_tokens: Maximum number of new tokens. ``None``: for each probe its longest accepted
            answer plus 8, rounded up to a multiple of 8.
        layout: Layout of texts in forward passes; ``None``: chosen here, from the current model. A
            resumed run passes the layout it began with.

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
        """Score probes by teacher forcing and greedy generation; repeated rows are computed once.

        Args:
            probes: Probes with their request ids, see
                :func:`~lightning_edit.evaluation.outcomes.probes_of`.

        Returns:
            One outcome per probe, in order, not yet compared with a pristine model.

        Raises:
            DataError: If a text cannot be tokenised or does not fit into the model.
        """
        own = self._prompt_ids(probes) if self._is_encoder_decoder or "gen" in self.modes else {}
        pairs = self._encode_answers(probes, own)
        prompts = [self._generation_prompt(item, own, pairs) if own else None for item in probes]
        generator = GreedyGenerator(
            self.model, self.tokenizer, self.batch_size, self._max_positions
        )
        force = TeacherForcing(self.model, self.batch_size, self.layout)
        end = self.layout.after_answer
        with evaluating(self.model):
            ahead = (
                dict.fromkeys(_rows_with_next_token(probes, pairs), end)
                if self._reuses_forced_pass(generator)
                else {}
            )
            rows = set(pairs.values()) if "tf" in self.modes else set(ahead)
            forced = force(rows, ahead)
            texts: dict[Prompt, str] = {}
            if "gen" in self.modes:
                argmax = {(row[0], row[1] + end): forced[row].chosen for row in ahead}
                unique = {prompt for prompt in prompts if prompt is not None}
                texts = generator.texts(_partial_continuations(generator, unique, argmax))
        if "tf" not in self.modes:
            forced = {}
        scores = []
        for item, prompt in zip(probes, prompts, strict=True):
            answers = {
                text: AnswerScore(text, pair[1], forced[pair].best, forced[pair].nlls)
                for text in _answer_texts(item)
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
        """Score groups of probes in one call, with the outcomes of each group.

        Args:
            units: Groups of probes, such as those of one request.

        Returns:
            The outcomes of each group.
        """
        scores = iter(self.score([probe for unit in units for probe in unit]))
        return [list(islice(scores, len(unit))) for unit in units]

    # ------------------------------------------------------------------------------- tokenising

    @property
    def _is_encoder_decoder(self) -> bool:
        return bool(self.model.config.is_encoder_decoder)

    def _prompt_ids(self, probes: Sequence[ScoredProbe]) -> dict[str, Ids]:
        """Tokenise each prompt without an answer."""
        prompts = list(dict.fromkeys(item.probe.prompt for item in probes))
        listed = encode_prompts(self.tokenizer, [prompt.rstrip() for prompt in prompts])
        # An encoder expects a final EOS token; a decoder would read it as the end of the text.
        end = None if self._is_encoder_decoder else self.tokenizer.eos_token_id
        return {
            prompt: tuple(ids[:-1] if len(ids) > 1 and ids[-1] == end else ids)
            for prompt, ids in zip(prompts, listed, strict=True)
        }

    def _encode_answers(
        self, probes: Sequence[ScoredProbe], own: Mapping[str, Ids]
    ) -> dict[tuple[str, str], AnswerRow]:
        """Tokenise each prompt with each of its answers, as (context ids, answer ids)."""
        asked: dict[tuple[str, str], ScoredProbe] = {}
        for item in probes:
            for text in _answer_texts(item):
                asked.setdefault((item.probe.prompt, text), item)
        found = encode_pairs(self.tokenizer, list(asked))
        pairs = {}
        for pair, item in asked.items():
            try:
                context, answer = next(found)
            except ValueError as error:
                raise DataError(f"request {item.edit_id}: {error}") from error
            if self._is_encoder_decoder:
                pairs[pair] = own[item.probe.prompt], tuple(answer)
            else:
                self._check_length(item, len(context), len(answer))
                pairs[pair] = tuple(context), tuple(answer)
        return pairs

    def _check_length(self, item: ScoredProbe, context: int, answer: int) -> None:
        if context == 0:
            raise DataError(
                f"request {item.edit_id}: the prompt {item.probe.prompt!r} merges with its "
                "answer's first token, so the answer has no context; make the prompt longer"
            )
        room = self._max_positions
        if room is not None and context + answer > room:
            raise DataError(
                f"request {item.edit_id}: the prompt {item.probe.prompt[:60]!r}… and its answer "
                f"have {context + answer} tokens but the model takes {room}; shorten the prompt"
            )

    @property
    def _max_positions(self) -> int | None:
        """Maximum positions of a decoder-only model; ``None`` if not limited."""
        if self._is_encoder_decoder:
            return None
        return getattr(self.model.config, "max_position_embeddings", None)

    def _generation_prompt(
        self, item: ScoredProbe, own: Mapping[str, Ids], pairs: Mapping[tuple[str, str], AnswerRow]
    ) -> Prompt:
        """Return the prompt ids and the maximum number of new tokens for generation."""
        prompt = own[item.probe.prompt]
        longest = max(len(pairs[item.probe.prompt, text][1]) for text in item.probe.answers)
        limit = self.max_new_tokens or -(-(longest + _EXTRA_TOKENS) // LIMIT_STEP) * LIMIT_STEP
        if self._max_positions is not None:
            limit = max(1, min(limit, self._max_positions - len(prompt)))
        return prompt, limit

    # ---------------------------------------------------------------------------------- running

    def _reuses_forced_pass(self, generator: GreedyGenerator) -> bool:
        """Return whether generation can start from the teacher-forced pass over the same prompt."""
        return "gen" in self.modes and not self._is_encoder_decoder and generator.is_plain

    def guess_after_answer(self, probes: Sequence[ScoredProbe]) -> Ids:
        """Guess the token that the model generates after an answer, such as a full stop.

        A correct guess saves generation steps, and every teacher-forced pass verifies it. But a
        pass over another token rounds differently, so a run makes the guess once, on the pristine
        model, and keeps it in its :class:`~lightning_edit.inference.pass_layout.PassLayout`.

        Args:
            probes: All probes of a run.

        Returns:
            The token that most often follows; empty if that is the end of the text, if there are
            fewer than 16 answers, or if nothing is generated.

        Raises:
            DataError: As :meth:`score`.
        """
        generator = GreedyGenerator(
            self.model, self.tokenizer, self.batch_size, self._max_positions
        )
        if not self._reuses_forced_pass(generator):
            return ()
        rows = _rows_with_next_token(probes, self._encode_answers(probes, {}))
        if len(rows) < _GUESS_ROWS:
            return ()
        sample = dict.fromkeys(sorted(rows)[:: len(rows) // _GUESS_ROWS], ())
        with evaluating(self.model):
            forced = TeacherForcing(self.model, self.batch_size, self.layout)(sample, sample)
        counts = Counter(one.chosen[-1] for row, one in forced.items() if one.best == row[1])
        # Ties go to the lowest token id, so that the order of counting does not matter.
        token = min(counts, key=lambda token: (-counts[token], token), default=None)
        return () if token is None or token in generator.ends else (token,)


def evaluate(
    scorer: Scorer, requests: Iterable[EditRequest], baseline: Baseline | None = None
) -> list[ProbeScore]:
    """Score every probe of the requests, compared with a pristine baseline.

    Args:
        scorer: Scorer of the model.
        requests: Requests whose probes are scored.
        baseline: Outcomes on the pristine model to compare with; ``None`` to make the baseline.

    Returns:
        One outcome per probe, in the order of the requests.

    Raises:
        DataError: If a text cannot be tokenised, or the baseline lacks a probe.
    """
    scores = scorer.score([probe for request in requests for probe in probes_of(request)])
    return scores if baseline is None else baseline.compare(scores)


def _answer_texts(item: ScoredProbe) -> list[str]:
    """Return the answers to teacher-force: accepted answers and the contrast."""
    return [*item.probe.answers, *([] if item.contrast is None else [item.contrast])]


def _rows_with_next_token(
    probes: Iterable[ScoredProbe], pairs: Mapping[tuple[str, str], AnswerRow]
) -> set[AnswerRow]:
    """Return the rows whose pass also reads the token after the answer, for generation.

    A model that does not generate the first answer often generates the contrast.
    """
    return {
        pairs[item.probe.prompt, text]
        for item in probes
        for text in (item.probe.answers[0], item.contrast)
        if text is not None
    }


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
