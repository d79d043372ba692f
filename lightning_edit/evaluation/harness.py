"""Adapter for lm-evaluation-harness: any of its tasks, asked of an edited model.

Needs the optional package ``lm-eval``.
"""

from collections.abc import Sequence
from typing import Any

from lightning_edit.exceptions import ConfigError
from lightning_edit.inference.model_responder import ModelResponder
from lightning_edit.inference.responder import Question, Responder, Statement

_INSTALL = 'pip install "lightning-edit[harness]"'


def harness_model(responder: Responder, max_new_tokens: int = 256, begin: str = "") -> Any:
    """Return a model of lm-evaluation-harness that answers through a responder.

    Example::

        import lm_eval

        lm = harness_model(editor.responder(edited.ledger.in_force))
        lm_eval.simple_evaluate(lm, tasks=["lambada_openai"])

    Args:
        responder: What is asked, such as an editor's with its edits in force.
        max_new_tokens: Limit of a generation where a task sets none.
        begin: Text in place of an empty context, such as the BOS token; empty: the tokenizer's BOS
            or EOS, of a :class:`~lightning_edit.inference.model_responder.ModelResponder`.

    Returns:
        An ``lm_eval.api.model.LM``.

    Raises:
        ConfigError: If ``lm-eval`` is not installed.
    """
    try:
        from lm_eval.api.model import LM  # optional
    except ImportError as error:
        raise ConfigError(f"tasks of lm-evaluation-harness need lm-eval: {_INSTALL}") from error
    opening = begin or _opening(responder)

    class HarnessModel(LM):  # type: ignore[misc]  # not typed
        """Model of lm-evaluation-harness over a responder."""

        def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
            """Score continuations of contexts."""
            pairs = [request.args for request in requests]
            statements = [Statement(context or opening, text, "") for context, text in pairs]
            return [(-one.total, one.is_greedy) for one in responder.loglikelihood(statements)]

        def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
            """Score whole texts, given the opening."""
            texts = [opening + request.args[0] for request in requests]
            return [-one.total for one in responder.loglikelihood_rolling(texts)]

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            """Continue contexts greedily."""
            groups: dict[tuple[str, ...], list[int]] = {}
            questions = []
            for number, request in enumerate(requests):
                context, options = request.args
                until = options.get("until", ())
                stop = (until,) if isinstance(until, str) else tuple(until)
                limit = int(options.get("max_gen_toks", max_new_tokens))
                questions.append(Question(context or opening, limit, ""))
                groups.setdefault(stop, []).append(number)
            found: dict[int, str] = {}
            for stop, numbers in groups.items():
                texts = responder.generate_until([questions[n] for n in numbers], stop)
                found |= zip(numbers, texts, strict=True)
            return [found[number] for number in range(len(questions))]

    return HarnessModel()


def _opening(responder: Responder) -> str:
    if not isinstance(responder, ModelResponder):
        return ""
    tokenizer = responder.prompts.tokenizer
    return str(tokenizer.bos_token or tokenizer.eos_token or "")
