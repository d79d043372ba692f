"""Evaluation of a stream of edits: probe scores compared with the pristine baseline."""

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lightning_edit.evaluation.baseline import Baseline
from lightning_edit.evaluation.judges import JudgeLike, find_judge, judged
from lightning_edit.evaluation.outcomes import ProbeScore, ScoredProbe, probes_of
from lightning_edit.evaluation.scorer import Scorer
from lightning_edit.exceptions import DataError
from lightning_edit.inference.pass_layout import PassLayout
from lightning_edit.storage.jsonl import read_rows
from lightning_edit.storage.run_folder import RunFolder
from lightning_edit.types import EditRequest

log = logging.getLogger(__name__)

#: Requests per step of the progress bar.
_CHUNK = 32


def _probe_chunks(requests: Sequence[EditRequest]) -> Iterator[list[ScoredProbe]]:
    for start in range(0, len(requests), _CHUNK):
        part = requests[start : start + _CHUNK]
        yield [probe for request in part for probe in probes_of(request)]


class Evaluation:
    """Evaluation of requests before and after editing, with a pristine baseline on disk.

    Args:
        scorer: Scorer of the language model.
        progress: Whether the baseline pass shows a progress bar.
        judge: Judge of the generated texts, see :mod:`lightning_edit.evaluation.judges`.
    """

    def __init__(
        self, scorer: Scorer, progress: bool = True, judge: JudgeLike = "answer_first"
    ) -> None:
        self.scorer = scorer
        self.progress = progress
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
        if folder.passes.exists():
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
            return
        # Not in the scorer's constructor: callbacks may hook into the model at the start of a run.
        layout = self.scorer.layout = PassLayout.choose(
            self.scorer.model, self.scorer.responder.shares_prompts
        )
        # Baselines of older versions were scored without a recorded guess.
        if not folder.baseline.exists():
            probes = [probe for part in _probe_chunks(requests) for probe in part]
            after = self.scorer.guess_after_answer(probes)
            layout = self.scorer.layout = replace(layout, after_answer=after)
        folder.write_json(folder.passes, layout.to_dict())

    def take_baseline(self, requests: Sequence[EditRequest], folder: RunFolder) -> None:
        """Score the pristine baseline once, or load it from an interrupted run.

        Args:
            requests: Every request of the stream.
            folder: Run folder with ``passes.json`` and ``baseline.jsonl``.

        Raises:
            DataError: If a file on disk cannot be read, or is of another stream.
        """
        self.choose_layout(requests, folder)
        if folder.baseline.exists():
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
        folder.write_lines(folder.baseline, self.baseline.to_rows())

    def scores(self, requests: Sequence[EditRequest]) -> list[ProbeScore]:
        """Score probes on the current model and compare them with the pristine baseline.

        Args:
            requests: Requests whose probes are scored.

        Returns:
            One outcome per probe.
        """
        scores = [score for part in _probe_chunks(requests) for score in self.scorer.score(part)]
        return self.baseline.compare(judged(scores, self.judge))

    def _score(self, requests: Sequence[EditRequest], title: str) -> Iterable[ProbeScore]:
        total = sum(1 for request in requests for _ in request.all_probes())
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        scores: list[ProbeScore] = []
        with Progress(
            *columns, TextColumn("probes"), TimeRemainingColumn(), disable=not self.progress
        ) as bar:
            task = bar.add_task(title, total=total)
            for part in _probe_chunks(requests):
                scores += self.scorer.score(part)
                bar.advance(task, len(part))
        return judged(scores, self.judge)
