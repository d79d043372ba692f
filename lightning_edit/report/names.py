"""Metric names of ``results.json`` with title, definition and unit for readers. Torch-free.

``docs/metrics.md`` has the full definitions. A metric that is not listed here is shown under its
own name.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lightning_edit.report.series import percent

_SIZES = ("bytes", "kB", "MB", "GB", "TB")


@dataclass(frozen=True)
class MetricInfo:
    """How to display a metric: title, definition, unit, axis.

    Args:
        title: What it measures, in a few words.
        note: Its definition in one sentence; may be empty.
        unit: Its unit; may be empty.
        share: Whether it is a share between 0 and 1.
        leading: Whether it gets a chart; the others only appear in the list of all metrics.
        log: Whether values that span several orders of magnitude get a logarithmic axis.
        counter: Whether it counts or names a place in the sequence: told as a number, never drawn.
        start: Value on the unedited model by definition, with which a curve begins.
    """

    title: str
    note: str = ""
    unit: str = ""
    share: bool = False
    leading: bool = True
    log: bool = False
    counter: bool = False
    start: float | None = None

    def show(self, value: float) -> str:
        """Format a value with its unit."""
        if self.share:
            return percent(value)
        if self.unit == "bytes":
            size = min(int(math.log(max(value, 1), 1000)), len(_SIZES) - 1)
            return f"{value / 1000**size:.3g} {_SIZES[size]}"
        number = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
        return f"{number} {self.unit}".strip()


#: Display by measure (the last part of a metric name), for every aspect and mode.
_MEASURES: Mapping[str, MetricInfo] = {
    "judge": MetricInfo("Right answers, by the judge", share=True),
    "answer": MetricInfo(
        "Right answers", "The text starts with an accepted answer, whatever follows.", share=True
    ),
    "em": MetricInfo("Right answers", share=True),
    "kept": MetricInfo("Answers as before", share=True),
    "contains": MetricInfo("Right answer anywhere in the text", share=True, leading=False),
    "token_acc": MetricInfo("Right tokens", share=True, leading=False),
    "nll": MetricInfo("Negative log probability of the answer", unit="nats", leading=False),
    "margin": MetricInfo("Right over wrong answer, probability", leading=False),
    "margin_sign": MetricInfo(
        "Right answer more probable than the wrong one", share=True, leading=False
    ),
    "retention": MetricInfo(
        "Earlier edits that still hold",
        "Of the edits that held when they were written and that others followed.",
        share=True,
    ),
    "earlier": MetricInfo("Earlier edits that are right", share=True, leading=False),
    "half_life": MetricInfo(
        "Half-life of an edit",
        "Later edits after which half of the edits is lost.",
        "edits",
        counter=True,
    ),
    "hidden_cosine": MetricInfo(
        "Distance of hidden states",
        "1 − cosine to the pristine model's hidden states on fixed texts; 0 is no change.",
        start=0.0,
    ),
    "hidden_l2": MetricInfo("Distance of hidden states, norm", leading=False),
    "perplexity_ratio": MetricInfo(
        "Perplexity on held text, over that before",
        "How surprised the model is by ordinary text; 1 is no change, a steep rise is collapse.",
        "×",
        log=True,
        start=1.0,
    ),
    "l1_growth": MetricInfo("Growth of the weights, L1", leading=False),
    "l2_growth": MetricInfo(
        "Growth of the weights",
        "Norm of the edited weights over their norm before; 1 is none.",
        start=1.0,
    ),
    "update_norm": MetricInfo(
        "Size of all edits",
        "Norm of the change over the norm of the weights before.",
        start=0.0,
    ),
    "perplexity": MetricInfo("Perplexity on held text", leading=False),
    "perplexity_mean": MetricInfo("Perplexity on held text, mean over texts", leading=False),
    "perplexity_median": MetricInfo(
        "Perplexity on held text, median",
        "How surprised the model is by ordinary text; a steep rise is model collapse.",
        leading=False,
        log=True,
    ),
    "perplexity_clipped": MetricInfo(
        "Perplexity on held text, clipped mean", "Each text counts 1000 at most.", leading=False
    ),
    "ngram_entropy": MetricInfo(
        "Variety of what it writes",
        "Entropy of word pairs and triples; a model that repeats itself has a low one.",
        "bits",
    ),
    "seconds": MetricInfo("Seconds an edit", "Finding and writing it, without scoring.", "s"),
    "search_seconds": MetricInfo("Target search, an edit", unit="s"),
    "keys_seconds": MetricInfo("Reading of keys, an edit", unit="s"),
    "solve_seconds": MetricInfo("Solving, an edit", unit="s"),
    "evaluate_seconds": MetricInfo("Scoring, an edit", unit="s"),
    "delta_bytes": MetricInfo("Size of an edit on disk", unit="bytes"),
    "peak_cuda_bytes": MetricInfo("Peak memory of the GPU", unit="bytes"),
    "peak_rss_bytes": MetricInfo("Peak memory of the process", unit="bytes"),
    "parameters": MetricInfo("Parameters changed", unit="numbers", counter=True),
    "rank": MetricInfo("Rank of an edit", counter=True),
    "leak": MetricInfo(
        "The new answer where it is wrong", "Share of questions; less is better.", share=True
    ),
    "eos": MetricInfo(
        "The right answer beats the new one", "Where the new one is wrong.", share=True
    ),
    "ams": MetricInfo("Old answer overcome", share=True, leading=False),
    "broken": MetricInfo("Edits beyond the bound of perplexity", share=True, leading=False),
    "first_broken": MetricInfo(
        "Perplexity beyond its bound, first after", unit="edits", counter=True
    ),
    "rolled_back": MetricInfo("Edits taken back", counter=True),
    "checks": MetricInfo("Checks of the guard", leading=False, counter=True),
    "gie": MetricInfo(
        "Harm to facts that only the model holds close",
        "GIE: mean change of facts close in hidden space and far in the graph, over that of "
        "unrelated facts; reconstructed from the paper's abstract.",
        "nats",
    ),
    "change": MetricInfo("Mean rise of the answer's log perplexity", unit="nats", leading=False),
    "beyond": MetricInfo(
        "Facts harmed", "Their probability fell below half, unless set otherwise.", share=True
    ),
    "p95": MetricInfo("95th percentile of the rise", unit="nats", leading=False),
    "rank_change": MetricInfo("Change of the answer's rank", leading=False),
    "em_before": MetricInfo("Known before", share=True, leading=False),
    "facts": MetricInfo("Facts asked", leading=False),
    "energy": MetricInfo("Energy of the edit in its first ranks", share=True, leading=False),
    "held": MetricInfo("Edits that are there", share=True),
    "survived": MetricInfo(
        "Edits that survive", "Of the questions that were answered with the edit.", share=True
    ),
    "moved": MetricInfo("Facts attributed to edits", leading=False),
    "own_edit": MetricInfo("Moved by the edit that they probe", share=True, leading=False),
    "ES": MetricInfo("ES, efficacy", share=True),
    "PS": MetricInfo("PS, paraphrases", share=True),
    "NS": MetricInfo("NS, neighbourhood", share=True),
    "S": MetricInfo("S, their harmonic mean", share=True),
    "passed": MetricInfo("Tests passed", share=True),
    "passed_known": MetricInfo("Tests passed, premises known", share=True),
    "known": MetricInfo("Tests with known premises", share=True),
    "dp": MetricInfo("Probability of the new answer", leading=False),
    "cap": MetricInfo("Probability of the right answer", leading=False),
    "oap": MetricInfo("Probability of the old answer", leading=False),
}
#: Measures that ``drift.<aspect>/…`` reports as a change since the first edit.
_CHANGE_MEASURES = ("judge", "answer", "em", "nll", "kept")
SETS = {
    "near": "close in hidden space only",
    "hop_1": "one step away",
    "hop_2": "two steps away",
    "random": "unrelated",
}
"""Sets of facts around an edit, by their name in ``ripple.<set>/…``."""
_MODES = {"tf": "teacher forced", "gen": "generated"}


def describe_measure(name: str) -> MetricInfo:
    """Describe a measure, ignoring aspect, kind and mode of the metric name.

    Args:
        name: Full name, as for :func:`describe_metric`.
    """
    measure = name.rpartition("/")[2].partition("@")[0]
    return _MEASURES.get(measure, MetricInfo(_to_words(measure)))


def describe_metric(name: str) -> MetricInfo:
    """Describe a metric by its full name, with kind, group and mode in the title.

    Args:
        name: Full name, ``<aspect>[.<kind>]/[<group>/]<measure>[@<mode>]``.
    """
    group, _, rest = name.partition("/")
    path, _, mode = rest.partition("@")
    of, _, measure = path.rpartition("/")
    kind = group.partition(".")[2]
    about = describe_measure(name)
    extra = [_to_words(part).lower() for part in (kind, of) if part]
    extra += [_MODES.get(mode, mode)] if mode else []
    if group == "drift.trend" or (group.startswith("drift.") and measure in _CHANGE_MEASURES):
        about = replace(about, share=False, leading=False)
    if group.startswith("ripple."):  # all sets share one chart
        about = replace(about, leading=False)
    return replace(about, title=", ".join([about.title, *extra]))


def leading_metrics(names: Sequence[str]) -> list[str]:
    """Select the metrics that get a chart, the most informative first.

    Of a metric measured in both modes only the generated one gets a chart: teacher-forced values
    are upper bounds.

    Args:
        names: Full metric names.
    """
    listed = [
        name
        for name in names
        if describe_metric(name).leading
        and (not name.endswith("@tf") or name.removesuffix("@tf") + "@gen" not in names)
    ]
    order = list(_MEASURES)
    places = {name: name.rpartition("/")[2].partition("@")[0] for name in listed}
    return sorted(
        listed, key=lambda n: order.index(places[n]) if places[n] in order else len(order)
    )


def _to_words(name: str) -> str:
    words = name.replace("_", " ")
    return words[:1].upper() + words[1:]
