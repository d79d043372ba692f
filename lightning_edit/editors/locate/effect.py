"""Effect of an edit: whether the edited model has at the site what the target search wanted.

An update can be solved as its equations say and yet do something else: a norm may undo it, layers
may work against each other, or a key may stand for its text badly. So every edit is looked at once
more, in one pass over its bare prompts.

Axis names: ``n`` -- requests; ``d`` -- hidden width; ``r`` -- rows (texts); ``f`` -- key width;
``w`` -- width of the site.
"""

import logging
import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from lightning_edit.editors.locate.targets import Targets
from lightning_edit.edits.delta import Delta
from lightning_edit.functional.losses import log_probs, mean_by
from lightning_edit.inference.answer_rows import AnswerRows
from lightning_edit.inference.hooks import capture, select_head_positions
from lightning_edit.inference.tokenized_text import TokenizedText
from lightning_edit.models.view import ModelView

log = logging.getLogger(__name__)

#: Entries of a delta's ``info`` that a warning needs, one value per request.
_FIGURES = ("site_distance", "nll_before", "nll_searched", "nll_edited")
#: The same four figures of one request.
_Figures = tuple[float, float, float, float]
#: Cosine of two requests' keys above which a layer cannot give them values of their own. Keys of
#: one subject in several prompts were at .7 to 1 on two models, of two subjects at .5 or less.
_ONE_KEY = 0.9
#: Cosine of two target vectors above which they ask for the same.
_ONE_TARGET = 0.9
#: Negative log-likelihood of an answer, in nats a token, below which a search has found it.
_FOUND = 0.5
#: Share of the residuals below which a method writes too little to be noticed in its answers.
_SMALL_SHARE = 0.1
#: Why nothing was searched for a request, and what helps.
NOT_SEARCHED = (
    "the model's own outputs are not finite at their prompts or at texts with them. Load the model "
    "in float32 or bfloat16, or undo the edit that damaged it."
)


def measure_effect(
    view: ModelView,
    bare: Sequence[TokenizedText],
    targets: Targets,
    module: str,
    written: slice,
    rows_per_pass: int,
) -> dict[str, list[float]]:
    """Compare an edited model with the targets of its edit, for the record of the delta.

    Args:
        view: The language model's structure; its updates are applied.
        bare: The bare prompt of every request, with its answer.
        targets: The target vectors.
        module: Dotted name of the module whose output is to be the target.
        written: Entries of the target vectors that are that module's.
        rows_per_pass: Most texts per pass.

    Returns:
        Per request: ``site_distance``, and each answer's mean negative log-likelihood after the
        bare prompt, without (``nll_before``) and with the searched vector (``nll_searched``), and
        on the edited model (``nll_edited``).
    """
    now, nll = read_effect(view, bare, module, rows_per_pass)
    wanted, before = (part.double()[:, written] for part in (targets.wanted, targets.initial))
    return {
        "site_distance": site_distance(now, wanted, before),
        "nll_before": targets.nll_before,
        "nll_searched": targets.nll,
        "nll_edited": nll.tolist(),
    }


@torch.no_grad()
def read_effect(
    view: ModelView, bare: Sequence[TokenizedText], module: str, rows_per_pass: int
) -> tuple[Float[Tensor, "n d"], Float[Tensor, " n"]]:
    """Read a module's output at the subjects, and each answer's mean negative log-likelihood.

    Args:
        view: The language model's structure.
        bare: The bare prompt of every request, with its answer.
        module: Dotted name of the module.
        rows_per_pass: Most texts per pass.

    Returns:
        Outputs in float64, and one value per request.
    """
    device = view.embeddings.get_parameter("weight").device
    values, nll = [], []
    for start in range(0, len(bare), rows_per_pass):
        part = bare[start : start + rows_per_pass]
        pairs = [(text.ids[: len(text.ids) + 1 - len(text.answer)], text.answer) for text in part]
        rows = AnswerRows.pad(pairs, device)
        with (
            capture(view.model, {module: "output"}) as seen,
            select_head_positions(view.model, (rows.rows, rows.positions)),
        ):
            output = view.model(
                input_ids=rows.ids, attention_mask=rows.mask.long(), use_cache=False
            )
        logits = output.logits.squeeze(1)
        wide = torch.promote_types(logits.dtype, torch.float32)
        chosen, _ = log_probs(logits.to(wide), rows.targets)
        nll.append(mean_by(-chosen, rows.rows, len(part)))
        places = torch.arange(len(part)), torch.tensor([text.subject for text in part])
        values.append(seen[module][places].double())
    return torch.cat(values), torch.cat(nll)


def site_distance(
    now: Float[Tensor, "n d"], wanted: Float[Tensor, "n d"], before: Float[Tensor, "n d"]
) -> list[float]:
    """Return each request's distance to its target, as a share of the distance before the edit.

    Args:
        now: Values of the edited model: 0 for those of the target, 1 for those from before.
        wanted: The target values.
        before: Values when the target was searched.

    Example:
        >>> before, wanted = torch.zeros(1, 2), torch.tensor([[0.0, 4.0]])
        >>> site_distance(torch.tensor([[0.0, 3.0]]), wanted, before)
        [0.25]
    """
    left, asked = (wanted - now).norm(dim=1), (wanted - before).norm(dim=1)
    # A target that asks for no change has none to miss; one that is not finite is missed.
    return torch.where(asked == 0, 0.0, left / asked).tolist()


def fell_short(effect: Mapping[str, Sequence[float]]) -> list[bool]:
    """Return which requests are far from their target, or lack most of what their search won.

    An exact solve meets two targets at nearly one key with an update so large that the answers,
    and others, are lost.

    Args:
        effect: What :func:`measure_effect` returns.
    """
    lines = zip(*(effect[key] for key in _FIGURES), strict=True)
    return [not distance <= 0.5 or not _is_written(*nll) for distance, *nll in lines]


def rivals(
    keys: Sequence[Float[Tensor, "r f"]], delta: Float[Tensor, "n w"], short: Sequence[bool]
) -> list[int | None]:
    """Return for each request that fell short another that is written at nearly its key.

    A layer maps one key to one value, so two requests about one subject with different targets
    cannot both be written where their keys agree: always, where both prompts begin with it.

    Args:
        keys: Keys of each request.
        delta: Its target vector, less the value before the edit.
        short: Whether it fell short, see :func:`fell_short`.

    Returns:
        The number of the request with the nearest key, if it asks for another vector; ``None`` for
        requests that did not fall short or have no such other.
    """
    found: list[int | None] = [None] * len(keys)
    # A request for which nothing was searched asks for no value of its own.
    far = [number for number, one in enumerate(short) if one and bool(delta[number].any())]
    if not far or len(keys) < 2:
        return found
    unit = normalize(torch.stack([rows.double().mean(0) for rows in keys]), dim=1)
    asked = normalize(delta.double(), dim=1)
    for number in far:  # few, so the whole matrix of cosines is not needed
        near = unit @ unit[number]
        near[number] = -1.0
        near[asked @ asked[number] > _ONE_TARGET] = -1.0
        other = int(near.argmax())
        if float(near[other]) > _ONE_KEY:
            found[number] = other
    return found


def missed(deltas: Sequence[Delta]) -> set[str]:
    """Return the ids of edits whose search had found their answer, and which fell short of it.

    A stronger search does not help these; it may help where none was found.

    Args:
        deltas: Edits; those without the diagnostics of their requests do not count.
    """
    found = set()
    for delta in deltas:
        ids, info = delta.request_ids, delta.info
        if any(len(info.get(key, ())) != len(ids) for key in _FIGURES):
            continue
        lines = zip(ids, fell_short(info), info["nll_before"], info["nll_searched"], strict=True)
        found |= {
            name
            for name, short, before, searched in lines
            if short and before - searched >= 1 and searched < _FOUND
        }
    return found


def not_searched(deltas: Sequence[Delta]) -> set[str]:
    """Return the ids of edits without a target, since the model's own outputs are not finite.

    No setting of the search helps these.

    Args:
        deltas: Edits; those without the diagnostics of their requests do not count.
    """
    return {name for name, steps in _ended_not_finite(deltas).items() if steps == 0}


def _ended_not_finite(deltas: Sequence[Delta]) -> dict[str, int]:
    """Return the steps of edits whose search ended at a loss that is not finite, by id."""
    found: dict[str, int] = {}
    for delta in deltas:
        ids, info = delta.request_ids, delta.info
        if any(len(info.get(key, ())) != len(ids) for key in (*_FIGURES, "loss", "steps")):
            continue
        lines = zip(ids, info["loss"], info["steps"], strict=True)
        found |= {name: steps for name, loss, steps in lines if not math.isfinite(loss)}
    return found


def rivalled(deltas: Sequence[Delta]) -> set[str]:
    """Return the ids of edits at nearly the key of another, see :func:`rivals`.

    Args:
        deltas: Edits; those without the diagnostics of their requests do not count.
    """
    # Of numbers beyond the requests, facts that SIR restores with them, nobody is told.
    return {
        name
        for delta in deltas
        for name, rival in zip(delta.request_ids, delta.info.get("rivals", ()), strict=False)
        if rival is not None and rival < len(delta.request_ids)
    }


class EffectWarnings:
    """Warnings about edits that did not do what their equations say, one line for a batch of edits.

    A request is *missed* if less than half of what the solve promised has arrived, that is, if its
    ``site_distance`` is above ``0.5 + 0.5 · unwritten``; or if its answer is no more likely than
    before although the search had lowered its negative log-likelihood by a nat or more and at least
    half was promised. On the embedded model no method misses a request. Where the answers of all
    missed requests are written nonetheless (most of what the search won is there), the warning says
    so: other prompts may have moved with the site. A method that gives up most of a residual to
    preserve other keys (``unwritten`` above 0.9) keeps its promise; that is said once per binding.
    Where the model's own outputs are not finite at a request, nothing is searched for it; that is
    said in a line of its own, and so is a search that a vector ended with such outputs.
    """

    def __init__(self) -> None:
        self._told_share = False

    def check(self, method: str, deltas: Sequence[Delta], advice: str) -> None:
        """Log a warning if the edits of a batch missed, or wrote only a small share.

        Args:
            method: Name of the method, for the message.
            deltas: The edits, with the diagnostics that locate-then-edit methods record.
            advice: What helps edits of this method that missed, a sentence.
        """
        missed: dict[str, _Figures] = {}
        rival_of: dict[str, str] = {}
        shares = []
        ended = _ended_not_finite(deltas)
        for delta in deltas:
            info = delta.info
            promised = 1.0 - min(1.0, max(info["unwritten"], default=1.0))
            shares.append(promised)
            lines = zip(*(info[key] for key in _FIGURES), strict=True)
            for name, figures in zip(delta.request_ids, lines, strict=True):
                distance, before, searched, edited = figures
                unsaid = promised >= 0.5 and before - searched >= 1 and not edited < before
                if ended.get(name) == 0:
                    continue
                if not distance <= 1 - promised / 2 or unsaid:
                    missed[name] = (distance, before, searched, edited)
            ids = delta.request_ids
            others = zip(ids, info.get("rivals", [None] * len(ids)), strict=True)
            # A number beyond the requests is a fact that SIR restores with them.
            rival_of |= {name: ids[n] for name, n in others if n is not None and n < len(ids)}
        edits = sum(len(delta.request_ids) for delta in deltas)
        if ended:
            _warn_of_not_finite(method, ended, edits)
        if missed:
            explained = missed.keys() <= rival_of.keys()  # by a warning with advice of its own
            _warn_of_missed(method, missed, edits, "" if explained else f" {advice}")
        if rival_of:
            _warn_of_rivals(method, rival_of, edits)
        if shares and max(shares) < _SMALL_SHARE and not self._told_share:
            self._told_share = True
            log.warning(
                "%s writes %.0f %% of its residuals and gives up the rest to preserve other keys. "
                "Lower the weight of what is preserved (moment_weight, norm_weight), or widen the "
                "null space. This is said once.",
                method,
                100 * max(shares),
            )


def _warn_of_missed(method: str, missed: Mapping[str, _Figures], edits: int, advice: str) -> None:
    """Log which edits missed, the worst of them, and what to turn.

    Args:
        method: Name of the method.
        missed: Figures of the edits that missed, by id.
        edits: Number of edits that were made with them.
        advice: What helps, with a space before it.
    """
    worst = max(missed, key=lambda name: missed[name][0])
    distance, before, searched, edited = missed[worst]
    named = _named(list(missed))
    figures = (
        f"{worst} is at {distance:.2f} of its distance from before the edit, and its answer's "
        f"negative log-likelihood at {edited:.2f} (before: {before:.2f}, with the searched vector: "
        f"{searched:.2f})."
    )
    if all(_is_written(*one[1:]) for one in missed.values()):
        log.warning(
            "%s: %d of %d edits are written, but moved the model elsewhere than the target search "
            "wanted (%s), so other prompts may have moved too: look at the locality. %s%s",
            *(method, len(missed), edits, named, figures, advice),
        )
        return
    log.warning(
        "%s: %d of %d edits did not reach their targets (%s). %s%s",
        *(method, len(missed), edits, named, figures, advice),
    )


def _warn_of_not_finite(method: str, ended: Mapping[str, int], edits: int) -> None:
    """Log whose search ended at a loss that is not finite: at once, or at a vector on its way.

    Args:
        method: Name of the method.
        ended: Steps of these searches, by id of the edit.
        edits: Number of edits that were made with them.
    """
    at_once = [name for name, steps in ended.items() if steps == 0]
    later = [name for name, steps in ended.items() if steps > 0]
    if at_once:
        log.warning(
            "%s: %d of %d edits have no target (%s) and change nothing for their requests: %s",
            *(method, len(at_once), edits, _named(at_once), NOT_SEARCHED),
        )
    if later:
        log.warning(
            "%s: the target search of %d of %d edits (%s) ended before its time, at a vector that "
            "makes the model's outputs not finite; the last one before it is written. Load the "
            "model in float32 or bfloat16.",
            *(method, len(later), edits, _named(later)),
        )


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "")


def _warn_of_rivals(method: str, rival_of: Mapping[str, str], edits: int) -> None:
    """Log which edits are written at nearly one key with different answers, and what to do.

    Args:
        method: Name of the method.
        rival_of: For each such edit the other one.
        edits: Number of edits that were made with them.
    """
    name, other = next(iter(rival_of.items()))
    log.warning(
        "%s: %d of %d edits are written at nearly the same key as another edit with another "
        "answer, such as %s and %s. At the last token of their subject a layer reads the same for "
        "both, so it can give one of the two answers in full, and other edits suffer as well. "
        "Leave one of the two out, or write them with a method that does not write at the "
        "subject, such as FTM or GRACE.",
        *(method, len(rival_of), edits, name, other),
    )


def _is_written(before: float, searched: float, edited: float) -> bool:
    """Whether an answer has most of what the search has won, in nats."""
    return before - edited > (before - searched) / 2 > 0
