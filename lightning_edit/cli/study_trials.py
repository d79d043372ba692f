"""One trial of a study: an editor with some settings edits every case, and each edit is scored."""

from collections.abc import Callable, Sequence
from contextlib import closing

import torch

from lightning_edit.analysis.sweep.measure import CaseScores
from lightning_edit.cli.study_options import Study
from lightning_edit.editors.base import Editor
from lightning_edit.edits.edit_loop import (
    Stopwatch,
    deltas_alone,
    encode_cases,
    find,
    written_alone,
)
from lightning_edit.edits.ledger import Ledger
from lightning_edit.evaluation.evaluator import Evaluation
from lightning_edit.exceptions import (
    ArchitectureError,
    ConfigError,
    LedgerError,
    NotFiniteError,
    SolveError,
)

#: Why an edit may be impossible at some settings, layers among them: a result, after which the
#: study goes on.
IMPOSSIBLE = (
    SolveError,
    LedgerError,
    NotFiniteError,
    ArchitectureError,
    ConfigError,
    torch.OutOfMemoryError,
)


def why_impossible(error: Exception) -> str:
    """Return why a trial was impossible, in words for its record.

    Args:
        error: One of :data:`IMPOSSIBLE`.
    """
    if isinstance(error, torch.OutOfMemoryError):
        torch.cuda.empty_cache()  # what the trial held goes with its frames
        return "the device is out of memory; a smaller --batch_size or fewer layers need less"
    return str(error)


def run_trial(
    study: Study,
    editor: Editor,
    evaluation: Evaluation,
    advance: Callable[[], None],
    *,
    together: bool = False,
    give_up: Callable[[Sequence[CaseScores]], bool] = lambda scores: False,
) -> tuple[list[CaseScores], float]:
    """Edit and score every case; the model is the pristine one afterwards.

    Args:
        study: The study.
        editor: The editor, not bound.
        evaluation: Scorer with the pristine baseline.
        advance: Called after every case.
        together: Write all cases at once and score them with all in force; ``False``: each alone.
        give_up: Whether the scores so far say that the others need not be measured.

    Returns:
        Scores of the cases, all of them or those until it was given up, and the seconds to compute
        one edit.

    Raises:
        SolveError: If no edit is possible. (Likewise ``LedgerError`` and ``NotFiniteError``.)
    """
    torch.manual_seed(study.config.seed)
    editor.to(study.model.device)
    editor.bind(study.model, study.prompts)
    ledger = Ledger(study.model, editor, runtime=editor.runtime())
    if not editor.edits_weights:
        layout = evaluation.scorer.layout
        size = study.config.eval_batch_size
        evaluation.scorer.responder = editor.responder(ledger.in_force, size)
        evaluation.scorer.layout = layout
    watch, config = Stopwatch(), study.config
    size = len(study.cases) if together else config.batch_size
    batches = encode_cases(editor.prompts, study.cases, size, config.seed)
    outcomes: list[CaseScores] = []
    try:
        if together:
            for part, delta in watch.over(find(editor, next(batches))):
                ledger.commit(delta, part.requests)
            for case in study.cases:
                outcomes.append(CaseScores.of(evaluation.scores(case), study.mode))
                advance()
        else:
            found = watch.over(deltas_alone(editor, batches))
            with closing(written_alone(ledger, found)) as written:
                for case_batch, _ in written:
                    scores = evaluation.scores(case_batch.requests)
                    outcomes.append(CaseScores.of(scores, study.mode))
                    advance()
                    if give_up(outcomes):
                        break
    finally:
        ledger.undo(ledger.request_ids)
    return outcomes, watch.wall / len(outcomes)
