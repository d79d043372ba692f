"""Bound of the target search by rule: doubled for the requests that it keeps from their answer.

How long a vector must be depends on how much the blocks above add, which differs between models:
the 0.75 of MEMIT's configs (arXiv 2210.07229) reaches most answers of large models and few of small
ones. Searched again is only what the bound has stopped, with a rate that grows with the bound where
it is ``auto``, and with more passes: with a fixed rate they end before a wide bound is near.

Axis names: ``n`` -- requests.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from jaxtyping import Bool
from torch import Tensor

from lightning_edit.editors.locate.search_objective import Objective
from lightning_edit.editors.locate.targets import Targets
from lightning_edit.inference.tokenized_text import TokenizedText

#: First bound on ‖δ‖ / ‖h₀‖: MEMIT's.
FIRST_CLAMP = 0.75
#: No bound is wider.
WIDEST_CLAMP = 6.0
#: Passes of a search with the next bound, as a multiple of those before: what is left is hard.
LONGER = 1.5
#: An answer is reached at this negative log-likelihood, in nats per token, with δ added.
REACHED = 0.05


def search_widening(
    search: Callable[[Sequence[TokenizedText], Objective], Targets],
    texts: Sequence[TokenizedText],
    objective: Objective,
    most: float = WIDEST_CLAMP,
) -> tuple[Targets, float]:
    """Search target vectors; again, with a bound twice as wide, those that it kept from an answer.

    Args:
        search: Searches the vectors of some texts.
        texts: The texts of all requests, those of one request together.
        objective: What is searched, with the first bound.
        most: No bound is wider.

    Returns:
        The targets, each of the search that made its answer the likelier, and the widest bound.
    """
    found = search(texts, objective)
    numbers = sorted({text.request for text in texts})
    widest = objective.clamp
    short = _kept_short(found, objective)
    longest = float(objective.steps)
    while short and widest < most:
        widest = min(2 * widest, most)
        longest *= LONGER
        wanted = {numbers[line] for line in short}
        part = [text for text in texts if text.request in wanted]
        wider = replace(objective, clamp=widest, steps=round(longest))
        again = search(part, wider)
        better = {
            line: again.only(place)
            for place, line in enumerate(short)
            if again.nll[place] < found.nll[line]
        }
        lines = range(len(numbers))
        found = Targets.concat([better[n] if n in better else found.only(n) for n in lines])
        short = [short[place] for place in _kept_short(again, wider)]
    return found, widest


def _kept_short(targets: Targets, objective: Objective) -> list[int]:
    """Return the lines whose search the bound, and no stopping rule, kept from its answer."""
    held = at_bound(targets, objective.clamp).tolist()
    figures = zip(held, targets.nll, targets.steps, strict=True)
    return [
        line
        for line, (stays, nll, steps) in enumerate(figures)
        if stays and nll > REACHED and steps >= objective.steps - 1
    ]


def at_bound(targets: Targets, clamp: float) -> Bool[Tensor, " n"]:
    """Return which requests' vectors have come to the bound on their length, in any part.

    Args:
        targets: The vectors.
        clamp: Largest ‖δ‖ / ‖h₀‖ of each part, where they were searched.
    """
    reached = targets.lengths >= 0.99 * clamp * targets.norms
    return (reached & (targets.lengths > 0)).any(1)
