"""Trial edits: what edits would move, from updates that are never kept.

Axis names: ``e`` -- edits; ``n`` -- facts.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_edit.editors.first_order import first_order_effects
from lightning_edit.editors.locate.rome import ROME
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.exceptions import ConfigError, DataError
from lightning_edit.inference.eval_mode import evaluating
from lightning_edit.models.prompt_encoder import PromptEncoder, PromptText
from lightning_edit.types import EditRequest
from lightning_edit.types.facts import Fact

#: Edits whose targets are searched together.
_EDITS = 64


def trial_effects(
    model: Any,
    prompts: PromptEncoder,
    requests: Sequence[EditRequest],
    facts: Sequence[Fact],
    layer: int,
    statistics: str,
) -> Float[Tensor, "e n"]:
    """Return what each request, written alone by ROME, would do to each fact, to first order.

    The model has the same bits afterwards. It costs a target search for each request, and a forward
    and two backward passes over the facts.

    Args:
        model: The unedited language model.
        prompts: Its tokenizer.
        requests: The edits; each names its subject.
        facts: The facts, of which the preferred answer is read.
        layer: Number of the block that ROME edits.
        statistics: Second moments of keys, as for :class:`ROME`.

    Returns:
        Changes of the mean log-probability a token of the fact's answer, in nats, float64.

    Raises:
        ConfigError: If a request names no subject.
        DataError: If a fact cannot be tokenised.
        StatisticsNotFoundError: If the second moments have not been collected.
    """
    if nameless := [one.id for one in requests if one.subject is None]:
        raise ConfigError(
            f"trial edits by ROME need the subject of every request, but {nameless[0]} names none; "
            "give `subject`, or rank facts in another way (key_overlap or hidden)"
        )
    try:
        encoded = list(prompts.encode(PromptText(one.prompt, one.answers[0]) for one in facts))
    except ValueError as error:
        raise DataError(f"a fact cannot be read: {error}") from error
    if not requests:
        return torch.zeros(0, len(facts), dtype=torch.float64)
    rows = [(one.prompt, one.answer) for one in encoded]
    with evaluating(model):
        editor = ROME(layers=[layer], statistics=statistics)
        editor.bind(model, prompts)
        found = []
        for start in range(0, len(requests), _EDITS):
            batch = encode_batch(editor.prompts, list(requests[start : start + _EDITS]))
            with torch.inference_mode(False), torch.enable_grad():
                targets = editor.search(batch)
                parts = enumerate(batch.split())
                deltas = [editor.write(part, targets.only(number)) for number, part in parts]
            found.append(first_order_effects(model, deltas, rows))
    return torch.cat(found)
