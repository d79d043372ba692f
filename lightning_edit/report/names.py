"""Numbers of ``results.json`` for readers: a title, a definition, a unit. Torch-free.

Definitions in full stand in ``docs/metrics.md``. A number that is not known here is shown under its
own name.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lightning_edit.report.series import percent

_SIZES = ("bytes", "kB", "MB", "GB", "TB")


@dataclass(frozen=True)
class About:
    """How a number is shown.

    Args:
        title: What it is, in a few words.
        note: Its definition in a sentence; may be empty.
        unit: Its unit; may be empty.
        share: Whether it is a share, 0 to 1.
        leading: Whether it is drawn; the others only stand in the list of all numbers.
        log: Whether values of very different size are drawn on a logarithmic axis.
    """

    title: str
    note: str = ""
    unit: str = ""
    share: bool = False
    leading: bool = True
    log: bool = False

    def show(self, value: float) -> str:
        """Return a value as text."""
        if self.share:
            return percent(value)
        if self.unit == "bytes":
            size = min(int(math.log(max(value, 1), 1000)), len(_SIZES) - 1)
            return f"{value / 1000**size:.3g} {_SIZES[size]}"
        number = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
        return f"{number} {self.unit}".strip()


#: By measure, whatever it was measured of.
_MEASURES: Mapping[str, About] = {
    "em": About("Right answers", share=True),
    "kept": About("Answers as before", share=True),
    "token_acc": About("Right tokens", share=True, leading=False),
    "nll": About("Negative log probability of the answer", unit="nats", leading=False),
    "margin": About("Right over wrong answer, probability", leading=False),
    "margin_sign": About(
        "Right answer more probable than the wrong one", share=True, leading=False
    ),
    "retention": About(
        "Earlier edits that still hold",
        "Of the edits that held when they were written and that others followed.",
        share=True,
    ),
    "earlier": About("Earlier edits that are right", share=True, leading=False),
    "half_life": About(
        "Half-life of an edit", "Later edits after which half of the edits is lost.", "edits"
    ),
    "hidden_cosine": About(
        "Distance of hidden states",
        "1 − cosine to the pristine model's hidden states on fixed texts; 0 is no change.",
    ),
    "hidden_l2": About("Distance of hidden states, norm", leading=False),
    "perplexity_ratio": About("Perplexity over that before", leading=False),
    "l1_growth": About("Growth of the weights, L1", leading=False),
    "l2_growth": About(
        "Growth of the weights", "Norm of the edited weights over their norm before; 1 is none."
    ),
    "update_norm": About(
        "Size of all edits", "Norm of the change over the norm of the weights before."
    ),
    "perplexity": About("Perplexity on held text", leading=False),
    "perplexity_mean": About("Perplexity on held text, mean over texts", leading=False),
    "perplexity_median": About(
        "Perplexity on held text, median",
        "How surprised the model is by ordinary text; a steep rise is a collapse.",
        log=True,
    ),
    "perplexity_clipped": About(
        "Perplexity on held text, clipped mean", "Each text counts 1000 at most.", leading=False
    ),
    "ngram_entropy": About(
        "Variety of what it writes",
        "Entropy of word pairs and triples; a model that repeats itself has a low one.",
        "bits",
    ),
    "seconds": About("Seconds an edit", "Finding and writing it, without scoring.", "s"),
    "search_seconds": About("Target search, an edit", unit="s"),
    "keys_seconds": About("Reading of keys, an edit", unit="s"),
    "solve_seconds": About("Solving, an edit", unit="s"),
    "evaluate_seconds": About("Scoring, an edit", unit="s"),
    "delta_bytes": About("Size of an edit on disk", unit="bytes"),
    "peak_cuda_bytes": About("Peak memory of the GPU", unit="bytes"),
    "peak_rss_bytes": About("Peak memory of the process", unit="bytes"),
    "parameters": About("Parameters changed", unit="numbers"),
    "rank": About("Rank of an edit"),
    "leak": About(
        "The new answer where it is wrong", "Share of questions; less is better.", share=True
    ),
    "eos": About("The right answer beats the new one", "Where the new one is wrong.", share=True),
    "ams": About("Old answer overcome", share=True, leading=False),
    "broken": About("Edits beyond the bound of perplexity", share=True, leading=False),
    "first_broken": About("Perplexity beyond its bound, first after", unit="edits"),
    "rolled_back": About("Edits taken back"),
    "gie": About(
        "Harm to facts that only the model holds close",
        "GIE: mean change of facts close in hidden space and far in the graph, over that of "
        "unrelated facts; reconstructed from the paper's abstract.",
        "nats",
    ),
    "change": About("Mean rise of the answer's log perplexity", unit="nats", leading=False),
    "beyond": About(
        "Facts harmed", "Their probability fell below half, unless set otherwise.", share=True
    ),
    "p95": About("95th percentile of the rise", unit="nats", leading=False),
    "rank_change": About("Change of the answer's rank", leading=False),
    "em_before": About("Known before", share=True, leading=False),
    "facts": About("Facts asked", leading=False),
    "energy": About("Energy of the edit in its first ranks", share=True, leading=False),
    "ES": About("ES, efficacy", share=True),
    "PS": About("PS, paraphrases", share=True),
    "NS": About("NS, neighbourhood", share=True),
    "S": About("S, their harmonic mean", share=True),
    "passed": About("Tests passed", share=True),
    "passed_known": About("Tests passed, premises known", share=True),
    "known": About("Tests with known premises", share=True),
    "dp": About("Probability of the new answer", leading=False),
    "cap": About("Probability of the right answer", leading=False),
    "oap": About("Probability of the old answer", leading=False),
}
#: What ``drift.<aspect>/…`` gives as a change since the first edit, not as a value.
_CHANGES = ("em", "nll", "kept")
SETS = {
    "near": "close in hidden space only",
    "hop_1": "one step away",
    "hop_2": "two steps away",
    "random": "unrelated",
}
"""Sets of facts around an edit, by their name in ``ripple.<set>/…``."""
_MODES = {"tf": "teacher forced", "gen": "generated"}


def describe_measure(name: str) -> About:
    """Say what a number is, whatever it was measured of and in whichever mode.

    Args:
        name: Full name, as of :func:`describe_number`.
    """
    measure = name.rpartition("/")[2].partition("@")[0]
    return _MEASURES.get(measure, About(_words(measure)))


def describe_number(name: str) -> About:
    """Say what a number is.

    Args:
        name: Full name, ``<aspect>[.<kind>]/[<group>/]<measure>[@<mode>]``.
    """
    group, _, rest = name.partition("/")
    path, _, mode = rest.partition("@")
    of, _, measure = path.rpartition("/")
    kind = group.partition(".")[2]
    about = describe_measure(name)
    extra = [_words(part).lower() for part in (kind, of) if part]
    extra += [_MODES.get(mode, mode)] if mode else []
    if group == "drift.trend" or (group.startswith("drift.") and measure in _CHANGES):
        about = replace(about, share=False, leading=False)
    if group.startswith("ripple."):  # drawn together
        about = replace(about, leading=False)
    return replace(about, title=", ".join([about.title, *extra]))


def leading_numbers(names: Sequence[str]) -> list[str]:
    """Return the names that are drawn, the most telling first.

    Of a number that was taken in both modes only the generated one is drawn: teacher-forced values
    are upper bounds.

    Args:
        names: Full names.
    """
    listed = [
        name
        for name in names
        if describe_number(name).leading
        and (not name.endswith("@tf") or name.removesuffix("@tf") + "@gen" not in names)
    ]
    order = list(_MEASURES)
    places = {name: name.rpartition("/")[2].partition("@")[0] for name in listed}
    return sorted(
        listed, key=lambda n: order.index(places[n]) if places[n] in order else len(order)
    )


def _words(name: str) -> str:
    words = name.replace("_", " ")
    return words[:1].upper() + words[1:]
