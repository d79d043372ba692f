"""Probe scoring with teacher forcing and greedy generation.

Outcomes depend neither on the batch size nor on the tokenizer's padding side, and each row has its
own token limit.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, get_args

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
from lightning_edit.inference.eval_mode import evaluating
from lightning_edit.inference.generation import LIMIT_STEP
from lightning_edit.inference.model_responder import ModelResponder
from lightning_edit.inference.pass_layout import PassLayout
from lightning_edit.inference.responder import Question, Responder, Statement
from lightning_edit.models.prompt_encoder import Ids, PromptEncoder, PromptText
from lightning_edit.types import EditRequest, Mode

__all__ = [
    "AnswerScore",
    "Baseline",
    "ProbeScore",
    "ScoredProbe",
    "Scorer",
    "compare",
    "continue_greedily",
    "evaluate",
    "evaluating",
    "probes_of",
]

#: New tokens allowed beyond the longest accepted answer, e.g. for "the city of" before it.
_EXTRA_TOKENS = 8


class Scorer:
    """Probe scorer of one language model: teacher-forced answers and greedy generations.

    The model is read at every call, so a scorer made before an edit also scores the edited model.

    Args:
        model: A Hugging Face language model, decoder-only or encoder-decoder.
        tokenizer: Its fast tokenizer, of any padding side; or a
            :class:`~lightning_edit.models.prompt_encoder.PromptEncoder`, to ask through a chat
            template.
        batch_size: Rows per batch; results do not depend on it.
        modes: ``tf``: given answers under teacher forcing. ``gen``: greedy generation.
        max_new_tokens: Maximum number of new tokens. ``None``: for each probe its longest accepted
            answer plus 8, rounded up to a multiple of 8.
        layout: Layout of texts in forward passes; ``None``: chosen here, from the current model. A
            resumed run passes the layout it began with.
        responder: What is asked; ``None``: the model itself.

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
        responder: Responder | None = None,
    ) -> None:
        if not modes or not set(modes) <= set(get_args(Mode)):
            raise ValueError(f"`modes` must be some of tf and gen; got {tuple(modes)}")
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1; got {batch_size}")
        self.model: Any = model
        self.prompts = PromptEncoder.for_model(model, tokenizer)
        self.batch_size = batch_size
        self.modes = tuple(modes)
        self.max_new_tokens = max_new_tokens
        if responder is None:
            kept = PassLayout.choose(model, fastest=True) if layout is None else layout
            responder = ModelResponder(model, self.prompts, batch_size, kept)
        self.responder = responder

    @property
    def layout(self) -> PassLayout:
        """Layout of texts in forward passes; of a responder that has none, plain rows."""
        responder = self.responder
        return responder.layout if isinstance(responder, ModelResponder) else PassLayout("plain")

    @layout.setter
    def layout(self, layout: PassLayout) -> None:
        if isinstance(self.responder, ModelResponder):
            self.responder.layout = layout

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
        lengths = self._answer_lengths(probes)
        statements = list(lengths) if "tf" in self.modes else []
        questions = [self._question(item, lengths) for item in probes]
        unique = list(dict.fromkeys(questions)) if "gen" in self.modes else []
        with evaluating(self.model):
            scores, texts = self.responder.ask(statements, unique, _likely(probes))
        forced = dict(zip(statements, scores, strict=True))
        generated = dict(zip(unique, texts, strict=True))
        found = []
        for item, question in zip(probes, questions, strict=True):
            answers = {
                one.answer: AnswerScore(one.answer, score.tokens, score.best, score.nlls)
                for one in _statements(item)
                if (score := forced.get(one)) is not None
            }
            found.append(
                ProbeScore(
                    edit_id=item.edit_id,
                    kind=item.probe.kind,
                    prompt=item.probe.prompt,
                    answers=item.probe.answers,
                    expect=item.probe.expect,
                    forced=tuple(answers[text] for text in item.probe.answers if text in answers),
                    contrast=None if item.contrast is None else answers.get(item.contrast),
                    generated=generated.get(question),
                    case=item.case,
                    group=item.probe.group,
                )
            )
        return found

    def score_each(self, units: Sequence[Sequence[ScoredProbe]]) -> list[list[ProbeScore]]:
        """Score groups of probes in one call, with the outcomes of each group.

        Args:
            units: Groups of probes, such as those of one request.

        Returns:
            The outcomes of each group.
        """
        scores = iter(self.score([probe for unit in units for probe in unit]))
        return [list(islice(scores, len(unit))) for unit in units]

    def _answer_lengths(self, probes: Sequence[ScoredProbe]) -> dict[Statement, int]:
        """Tokenise each prompt with each of its answers, and return the answers' lengths."""
        asked: dict[Statement, ScoredProbe] = {}
        for item in probes:
            for one in _statements(item):
                asked.setdefault(one, item)
        texts = (PromptText(one.prompt, one.answer, None, one.separator) for one in asked)
        lengths: dict[Statement, int] = {}
        statements = list(asked)
        try:
            for encoded in self.prompts.encode(texts):
                lengths[statements[len(lengths)]] = len(encoded.answer)
        except ValueError as error:
            item = asked[statements[len(lengths)]]
            raise DataError(f"request {item.edit_id}: {error}") from error
        return lengths

    def _question(self, item: ScoredProbe, lengths: Mapping[Statement, int]) -> Question:
        """Return the prompt and the maximum number of new tokens for generation."""
        prompt, separator = item.probe.prompt, item.separator
        answers = (Statement(prompt, text, separator) for text in item.probe.answers)
        longest = max(lengths[one] for one in answers)
        limit = self.max_new_tokens or -(-(longest + _EXTRA_TOKENS) // LIMIT_STEP) * LIMIT_STEP
        return Question(prompt, limit, separator)

    def guess_after_answer(self, probes: Sequence[ScoredProbe]) -> Ids:
        """Guess the token after an answer; see :meth:`ModelResponder.guess_after_answer`.

        Args:
            probes: All probes of a run.

        Returns:
            The token that most often follows; empty where nothing is generated.

        Raises:
            DataError: As :meth:`score`.
        """
        if "gen" not in self.modes or not isinstance(self.responder, ModelResponder):
            return ()
        self._answer_lengths(probes)  # names the request of a text that cannot be tokenised
        return self.responder.guess_after_answer(_likely(probes))


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


def _statements(item: ScoredProbe) -> list[Statement]:
    """Return the answers to teacher-force: accepted answers and the contrast."""
    texts = [*item.probe.answers, *([] if item.contrast is None else [item.contrast])]
    return [Statement(item.probe.prompt, text, item.separator) for text in texts]


def _likely(probes: Iterable[ScoredProbe]) -> list[Statement]:
    """Return the answers that a model is likely to generate.

    A model that does not generate the first answer often generates the contrast.
    """
    return list(
        dict.fromkeys(
            Statement(item.probe.prompt, text, item.separator)
            for item in probes
            for text in (item.probe.answers[0], item.contrast)
            if text is not None
        )
    )


def continue_greedily(model: nn.Module, tokenizer: Any, prompt: str, limit: int) -> str:
    """Return the greedy continuation of one prompt by a bare model, up to the end of the text.

    Args:
        model: A Hugging Face language model.
        tokenizer: Its fast tokenizer, or a prompt encoder.
        prompt: Text to continue.
        limit: Maximum number of new tokens.
    """
    responder = ModelResponder(model, tokenizer)
    return responder.generate_until([Question(prompt, limit)], stop=())[0]
