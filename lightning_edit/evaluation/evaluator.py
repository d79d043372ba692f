"""Evaluation of a stream of edits: probe scores compared with the pristine baseline."""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from lightning_edit.distributed.one_process import ALONE, OneProcess
from lightning_edit.evaluation.baseline import Baseline
from lightning_edit.evaluation.judges import JudgeLike, find_judge, judged
from lightning_edit.evaluation.outcomes import ProbeScore, ScoredProbe, probes_of
from lightning_edit.evaluation.scorer import Scorer
from lightning_edit.exceptions import DataError
from lightning_edit.inference.model_responder import ModelResponder
from lightning_edit.inference.pass_layout import PassLayout
from lightning_edit.inference.responder import Responder
from lightning_edit.storage.jsonl import read_rows
from lightning_edit.storage.run_folder import RunFolder
from lightning_edit.types import EditRequest

log = logging.getLogger(__name__)

#: Requests that are scored together, and per step of the progress bar.
_CHUNK = 32


def _probe_chunks(requests: Sequence[EditRequest]) -> Iterator[list[ScoredProbe]]:
    for start in range(0, len(requests), _CHUNK):
        part = requests[start : start + _CHUNK]
        yield [probe for request in part for probe in probes_of(request)]


def layout_for(model: nn.Module, responder: Responder, new: bool = True) -> PassLayout:
    """Choose the layout of a run's passes, but for its guess of what follows an answer.

    Args:
        model: The language model, pristine.
        responder: What the run asks.
        new: Whether nothing was scored before; else it was as older versions did.
    """
    fastest = new and isinstance(responder, ModelResponder)
    layout = PassLayout.choose(model, responder.shares_prompts, fastest)
    return layout if new else replace(layout, long_prefixes=False)


class Evaluation:
    """Evaluation of requests before and after editing, with a pristine baseline on disk.

    Args:
        scorer: Scorer of the language model.
        progress: Whether the baseline pass shows a progress bar.
        judge: Judge of the generated texts, see :mod:`lightning_edit.evaluation.judges`.
        ranks: The processes that hold the same model; they share the work.
    """

    def __init__(
        self,
        scorer: Scorer,
        progress: bool = True,
        judge: JudgeLike = "answer_first",
        ranks: OneProcess = ALONE,
    ) -> None:
        self.scorer = scorer
        self.progress = progress and ranks.is_first
        self.ranks = ranks
        self.judge = find_judge(judge)
        self.baseline = Baseline()

    def choose_layout(self, requests: Sequence[EditRequest], folder: RunFolder) -> None:
        """Choose the layout of all forward passes of a run, or load the one it began with.

        Args:
            requests: Every request of the stream.
            folder: Run folder with ``passes.json``.

        Raises:
            DataError: If the file on disk cannot be read.
        """
        if self.ranks.same(folder.passes.exists()):
            try:
                state = json.loads(folder.passes.read_bytes())
                if not isinstance(state, dict):
                    raise ValueError(f"expected an object, got {type(state).__name__}")
                self.scorer.layout = PassLayout.from_dict(state)
            except ValueError as error:
                raise DataError(
                    f"{folder.passes} does not say how this run's passes are laid out ({error}); "
                    "restore the run folder as a whole, or start a new run"
                ) from error
            if self.scorer.layout.products == "onednn":  # of a scorer that asks a model
                self.scorer.layout.require_products(self.scorer.model)
            return
        # Not in the scorer's constructor: callbacks may hook into the model at the start of a run.
        # Baselines of older versions were scored without a recorded guess, by PyTorch's products.
        new = not self.ranks.same(folder.baseline.exists())
        layout = self.scorer.layout = layout_for(self.scorer.model, self.scorer.responder, new)
        if new:
            probes = [probe for part in _probe_chunks(requests) for probe in part]
            after = self.scorer.guess_after_answer(probes)
            layout = self.scorer.layout = replace(layout, after_answer=after)
        state = self.ranks.same(layout.to_dict())
        self.scorer.layout = PassLayout.from_dict(state)
        self.ranks.first(lambda: folder.write_json(folder.passes, state))

    def take_baseline(self, requests: Sequence[EditRequest], folder: RunFolder) -> None:
        """Score the pristine baseline once, or load it from an interrupted run.

        Args:
            requests: Every request of the stream.
            folder: Run folder with ``passes.json`` and ``baseline.jsonl``.

        Raises:
            DataError: If a file on disk cannot be read, or is of another stream.
        """
        self.choose_layout(requests, folder)
        if self.ranks.same(folder.baseline.exists()):
            self.baseline = Baseline.from_rows(read_rows(folder.baseline))
            asked = [(p.edit_id, p.probe.prompt) for part in _probe_chunks(requests) for p in part]
            if [(score.edit_id, score.prompt) for score in self.baseline.scores] != asked:
                raise DataError(
                    f"{folder.baseline} holds other probes than this run asks; "
                    "use the run folder of the same requests, or a new one"
                )
            scored = {"tf": all(score.forced for score in self.baseline.scores)}
            scored["gen"] = all(score.generated is not None for score in self.baseline.scores)
            if {mode for mode, done in scored.items() if done} != set(self.scorer.modes):
                raise DataError(
                    f"{folder.baseline} was scored in other modes than {self.scorer.modes}; "
                    "resume with the modes that the run was started with"
                )
            by_judge = any(score.judged is not None for score in self.baseline.scores)
            if scored["gen"] and by_judge != (self.judge is not None):
                raise DataError(
                    f"{folder.baseline} was {'' if by_judge else 'not '}scored by a judge of its "
                    "own; resume with the `judge` that the run was started with"
                )
            return
        self.baseline = Baseline(self._score(requests, "Baseline: the pristine model"))
        rows = list(self.baseline.to_rows())
        self.ranks.first(lambda: folder.write_lines(folder.baseline, rows))

    def scores(self, requests: Sequence[EditRequest]) -> list[ProbeScore]:
        """Score probes on the current model and compare them with the pristine baseline.

        Args:
            requests: Requests whose probes are scored.

        Returns:
            One outcome per probe.
        """
        parts = self._dealt(requests, self.scorer.score)
        return self.baseline.compare(self._judged(score for part in parts for score in part))

    def _dealt(
        self,
        requests: Sequence[EditRequest],
        score: Callable[[list[ScoredProbe]], list[ProbeScore]],
    ) -> list[list[ProbeScore]]:
        """Score chunks of requests; processes share whole chunks, or the passes of a few."""
        chunks = list(_probe_chunks(requests))
        if self.ranks.size == 1:
            return [score(part) for part in chunks]
        responder = self.scorer.responder
        if len(chunks) >= self.ranks.size or not isinstance(responder, ModelResponder):
            return self.ranks.deal(chunks, score)
        with responder.shared_among(self.ranks):
            return [score(part) for part in chunks]

    def _judged(self, scores: Iterable[ProbeScore]) -> list[ProbeScore]:
        listed = list(scores)
        if self.judge is None:
            return listed
        # A judge may be a model elsewhere, which does not give every process the same verdict.
        return self.ranks.first(lambda: judged(listed, self.judge))

    def _score(self, requests: Sequence[EditRequest], title: str) -> Iterable[ProbeScore]:
        total = sum(1 for request in requests for _ in request.all_probes())
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(
            *columns, TextColumn("probes"), TimeRemainingColumn(), disable=not self.progress
        ) as bar:
            task = bar.add_task(title, total=total)

            def score(part: list[ScoredProbe]) -> list[ProbeScore]:
                found = self.scorer.score(part)
                bar.advance(task, len(part))
                return found

            parts = self._dealt(requests, score)
        return self._judged(score for part in parts for score in part)
