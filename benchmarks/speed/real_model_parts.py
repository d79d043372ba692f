"""Parts of the measurement on a real model: what is measured, and a pair of runs of it.

Second moments are made up: a search does not read them, and a solve costs the same.
"""

import argparse
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gpt2_shape
from published_passes import UltraEditReference, force_by_case
from reference import Reference, force_one_by_one, generate_one_by_one
from speed_around import answer_limit
from speed_editing import (
    agreement,
    flops,
    loss_difference,
    machine_rate,
    no_collection,
    timed_edit,
    timed_reference,
)
from stopwatch import Stopwatch

import lightning_edit.editors as editors
from lightning_edit.datamodules import CounterFactDataModule
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.evaluation.outcomes import probes_of
from lightning_edit.evaluation.scorer import Scorer
from lightning_edit.models.loading import load_language_model
from lightning_edit.types import EditRequest


@dataclass(frozen=True)
class Part:
    """What is measured: an editor on batches of some size, or scoring (no editor)."""

    at_least: float
    editor: str | None = None
    batches: int = 1
    size: int = 1
    tiny: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)
    rounds: int = 1


#: What both ways must share by value; λ is the authors' for GPT-J, and speed does not depend on it.
#: The bound is the authors': by rule, requests that it keeps from their answer are searched again.
_MEMIT = {"moment_weight": 15_000.0, "clamp": 0.75}
_ROME = {"clamp": 4.0}
#: Requests that are also searched with the head read once a pass, if a batch has more.
_ONCE = 2
PARTS = {
    "memit-batch": Part(10.0, "MEMIT", size=10, arguments=_MEMIT),
    "memit-one": Part(4.0, "MEMIT", batches=3, arguments=_MEMIT),
    "memit-one-tiny-gpt2": Part(4.0, "MEMIT", batches=9, tiny=True, arguments=_MEMIT),
    "rome": Part(6.0, "ROME", batches=3, arguments=_ROME),
    "ultraedit": Part(
        2.0,
        "UltraEdit",
        size=100,
        rounds=3,
        # The authors' rule throughout, so that both solve the same system.
        arguments={"eta": 1e-3, "variance": "as_code", "warmup": 2},
    ),
    "scoring": Part(8.0, size=50, rounds=3),
}


class Bench:
    """A model with its data, and the parts that are measured on it."""

    def __init__(self, part: Part, options: argparse.Namespace, folder: Path) -> None:
        self.part, self.options = part, options
        path = options.tiny if part.tiny else options.lm
        extra = {"add_bos": True} if part.tiny else {}
        self.model, self.tokenizer = load_language_model(str(path), **extra)
        count = part.size * part.batches
        data = CounterFactDataModule(str(options.data), limit=count)
        self.requests = data.edit_requests()[:count]
        self.arguments = dict(part.arguments)
        if part.editor not in (None, "UltraEdit"):
            cls = getattr(editors, str(part.editor))
            layers = cls.default_layers(self.model.config.num_hidden_layers)
            file = folder / f"{part.editor}.safetensors"
            self.arguments["statistics"] = gpt2_shape.statistics(self.model, layers, file)
            if options.steps is not None:
                self.arguments["steps"] = options.steps
            # Templates are sampled once; every editor that is bound later gets the same.
            self.arguments["context_templates"] = self.editor().templates

    @property
    def head_twice(self) -> bool:
        """Whether the authors' program reads the head a second time: MEMIT's does, ROME's not."""
        return self.part.editor == "MEMIT"

    def editor(self) -> Any:
        """Return a newly bound editor, which has factored nothing yet."""
        made = getattr(editors, str(self.part.editor))(**self.arguments)
        return made.bind(self.model, self.tokenizer)

    def batches(self) -> list[list[EditRequest]]:
        """Return the batches that are written together."""
        size = self.part.size
        return [self.requests[start : start + size] for start in range(0, len(self.requests), size)]

    # ------------------------------------------------------------------------------------- pairs

    def pair(self, number: int) -> dict[str, Any]:
        """Measure both ways once; every second pair begins with the other one."""
        batch = self.batches()[number % self.part.batches]
        measure = {None: self._scoring, "UltraEdit": self._ultraedit}.get(
            self.part.editor, self._locate
        )
        return {"load": os.getloadavg()[0]} | measure(batch, swap=bool(number % 2))

    def _locate(self, batch: list[EditRequest], swap: bool) -> dict[str, Any]:
        editor, clocks = self.editor(), {"ours": Stopwatch(), "reference": Stopwatch()}
        found: dict[str, Any] = {}

        def ours() -> None:
            found["ours"] = timed_edit(editor, batch, clocks["ours"])

        def theirs() -> None:
            found["reference"] = timed_reference(
                editor, batch, clocks["reference"], self.head_twice
            )

        _in_turn(ours, theirs, swap)
        (targets, deltas), (plain, wanted, updates) = found["ours"], found["reference"]
        steps = clocks["ours"].last["search"].steps
        compared = _compared(clocks, len(batch), "edit")
        if self.head_twice:
            compared["head_once"] = self._head_once(editor, batch, compared["seconds"])
        return compared | {
            "optimiser_steps": {
                "ours": statistics.mean(steps),
                "reference": statistics.mean(plain.steps),
            },
            "agreement": agreement(targets, deltas, wanted, updates),
        }

    def _head_once(
        self, editor: Any, batch: list[EditRequest], seconds: dict[str, Any]
    ) -> dict[str, Any]:
        """Search some requests with the head read once a pass; return seconds and ratios."""
        clock, few = Stopwatch(), batch[:_ONCE]
        plain = Reference(editor, clock)
        with no_collection(), clock.stage("search"):
            for request in few:
                plain.target(request)
        once, found = clock.per(len(few)), {}
        for unit, times in seconds["reference"].items():
            edit = times["edit"] - times["search"] + once[unit]["search"]
            found[unit] = {
                "search": once[unit]["search"],
                "ratio": round(edit / seconds["ours"][unit]["edit"], 2),
            }
        return {"requests": len(few)} | found

    def _ultraedit(self, batch: list[EditRequest], swap: bool) -> dict[str, Any]:
        editor, clocks = self.editor(), {"ours": Stopwatch(), "reference": Stopwatch()}
        found: dict[str, Any] = {}

        def ours() -> None:
            with no_collection(), clocks["ours"].stage("edit"):
                found["ours"] = editor.edit(encode_batch(editor.tokenizer, batch))

        def theirs() -> None:
            plain = UltraEditReference(editor, clocks["reference"])
            with no_collection(), clocks["reference"].stage("edit"):
                found["reference"] = plain.edit(batch)

        _in_turn(ours, theirs, swap)
        apart = [
            float((found["ours"].weights[name].dense() - value).norm() / value.norm())
            for name, value in found["reference"].items()
        ]
        return _compared(clocks, len(batch), "edit") | {
            "agreement": {"delta_relative_max": max(apart)}
        }

    def _scoring(self, batch: list[EditRequest], swap: bool) -> dict[str, Any]:
        """Score all cases here, some of them in the plain way; seconds are those a probe."""
        cases = [probes_of(request) for request in batch]
        few = cases[:: max(1, len(cases) // self.options.plain_cases)]
        every, some = ([probe for case in these for probe in case] for these in (cases, few))
        clocks = {"ours": Stopwatch(), "reference": Stopwatch()}
        found: dict[str, Any] = {}

        def ours() -> None:
            with clocks["ours"].stage("both"):
                scorer = Scorer(self.model, self.tokenizer)
                after = scorer.guess_after_answer(every)
                scorer.layout = replace(scorer.layout, after_answer=after)
                found["scores"] = scorer.score(every)
            with clocks["ours"].stage("tf"):
                Scorer(self.model, self.tokenizer, modes=("tf",)).score(every)

        def theirs() -> None:
            limits = [answer_limit(self.tokenizer, probe) for probe in some]
            with clocks["reference"].stage("tf"):
                found["losses"] = force_one_by_one(self.model, self.tokenizer, some)
            with clocks["reference"].stage("gen"):
                found["texts"] = generate_one_by_one(self.model, self.tokenizer, some, limits)
            with clocks["reference"].stage("tf_by_case"):
                force_by_case(self.model, self.tokenizer, few)

        _in_turn(ours, theirs, swap)
        place = {id(probe): number for number, probe in enumerate(every)}
        scores = [found["scores"][place[id(probe)]] for probe in some]
        same = [a.generated == text for a, text in zip(scores, found["texts"], strict=True)]
        counts = {"ours": len(every), "reference": len(some)}
        seconds = {who: clock.per(counts[who]) for who, clock in clocks.items()}
        for times in seconds["reference"].values():
            times["both"] = times["tf"] + times["gen"]
        for times in seconds["ours"].values():
            # The same answers, scored a record a pass, have no generation beside them.
            times["tf_by_case"] = times["tf"]
        return _with_ratio(seconds, "both") | {
            "probes": counts,
            "agreement": {
                "nats_max": loss_difference(scores, found["losses"]),
                "same_texts": sum(same) / len(same),
            },
        }

    # ------------------------------------------------------------------------------------- floor

    def operations(self, steps: float) -> dict[str, Any]:
        """Count what a search must multiply, beside the plain one, and the time of that alone."""
        batch, per = self.batches()[0][:3], {}
        for who in ("ours", "reference"):
            # The last pass of a search takes no gradient, so one of one step has none.
            none, one = (self._counted(batch, who, count) for count in (1, 2))
            per[who] = (none + steps * (one - none)) / len(batch)
        rate = machine_rate()
        return {
            "gflop_per_edit": {who: round(value / 1e9, 2) for who, value in per.items()},
            "ratio_by_operation_count": round(per["reference"] / per["ours"], 2),
            "gflop_per_second": round(rate / 1e9, 1),
            "floor_seconds_per_edit": round(per["ours"] / rate, 4),
        }

    def _counted(self, batch: Sequence[EditRequest], who: str, steps: int) -> float:
        editor = self.editor()
        editor.objective = replace(editor.objective, steps=steps, threshold=-1.0)
        if who == "ours":
            return flops(lambda: editor.search(encode_batch(editor.tokenizer, batch)))
        plain = Reference(editor, Stopwatch(), self.head_twice)
        return flops(lambda: [plain.target(request) for request in batch])


def _in_turn(ours: Callable[[], None], theirs: Callable[[], None], swap: bool) -> None:
    for run in (theirs, ours) if swap else (ours, theirs):
        run()


def _compared(clocks: dict[str, Stopwatch], count: int, main: str) -> dict[str, Any]:
    return _with_ratio({who: clock.per(count) for who, clock in clocks.items()}, main)


def _with_ratio(seconds: dict[str, Any], main: str) -> dict[str, Any]:
    ratio = {
        unit: {
            stage: round(seconds["reference"][unit][stage] / value, 2)
            for stage, value in times.items()
            if stage in seconds["reference"][unit] and value > 0
        }
        for unit, times in seconds["ours"].items()
    }
    return {"seconds": seconds, "ratio": ratio, "main": main}
