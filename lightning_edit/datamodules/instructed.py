"""Data module of several editing tasks, each request behind an instruction of its task."""

import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, zip_longest
from typing import Any

from lightning_edit.datamodules.base import EditDataModule
from lightning_edit.exceptions import DataError
from lightning_edit.types import EditRequest, cases_of
from lightning_edit.types.instructions import INSTRUCTIONS, instructed


class InstructedDataModule(EditDataModule):
    """Data module of several data modules, as tasks with instructions (InstructEdit).

    Prompts and rephrases become ``Task: …``, ``Description: …``, ``Input: …``: in training with a
    wording drawn for each request, in validation and test with a wording that is never trained on.
    Requests of the tasks alternate; their ids begin with the task's name.

    Args:
        tasks: Data modules by task, one of ``counterfactual``, ``question`` and ``recent``. Under
            ``question`` a request whose rephrases hold a question is asked as that question.
        held_out: Tasks that are left out of training, and are all that is validated and tested, as
            zsRE in the paper; empty: every task is in every split.
        **kwargs: As for :class:`EditDataModule`.
    """

    def __init__(
        self, tasks: dict[str, EditDataModule], held_out: list[str] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.tasks = tasks
        self.held_out = held_out

    def check_options(self, split: str) -> None:
        """Validate the options; see :meth:`EditDataModule.check_options`."""
        super().check_options(split)
        named = [*self.tasks, *(self.held_out or ())]
        if not self.tasks or (unknown := sorted(set(named) - INSTRUCTIONS.keys())):
            got = unknown if self.tasks else "none"
            raise DataError(f"`tasks` are some of {', '.join(INSTRUCTIONS)}; got {got}")
        if missing := sorted(set(self.held_out or ()) - self.tasks.keys()):
            raise DataError(
                f"`held_out` names tasks among `tasks` ({', '.join(self.tasks)}), for validation "
                f"and test; got {missing}, which have no data module there"
            )

    def load_split(self, split: str) -> list[EditRequest]:
        """Load one split of every task, and put instructions before the prompts."""
        held = set(self.held_out or ())
        wanted = [task for task in self.tasks if not held or (task in held) is (split != "train")]
        columns = [
            cases_of(
                [self._instructed(task, one, split) for one in self.tasks[task].requests(split)]
            )
            for task in wanted
        ]
        in_turn = chain.from_iterable(zip_longest(*columns))
        return [request for case in in_turn if case is not None for request in case]

    def _instructed(self, task: str, request: EditRequest, split: str) -> EditRequest:
        *trained, last = INSTRUCTIONS[task]
        drawn = random.Random(f"{self.seed}/{task}/{request.id}").choice(trained)
        if task == "question":
            request = _asked(request)
        case = None if request.case is None else f"{task}/{request.case}"
        own = replace(request, id=f"{task}/{request.id}", case=case)
        return instructed(own, drawn if split == "train" else last)

    def teardown(self, stage: str | None = None) -> None:
        """Tear the data modules of the tasks down.

        Args:
            stage: Lightning's.
        """
        for module in self.tasks.values():
            module.teardown(stage or "")


def _asked(request: EditRequest) -> EditRequest:
    """Return a request asked as a question, where it has one."""
    wordings = [request.prompt, *request.rephrases]
    question = next(_questions(wordings), None)
    if question is None or question == request.prompt:
        return request
    others = tuple(one for one in wordings if one != question)
    subject = request.subject if request.subject and request.subject in question else None
    return replace(request, prompt=question, rephrases=others, subject=subject, subject_start=None)


def _questions(wordings: list[str]) -> Iterator[str]:
    return (one for one in wordings if one.rstrip().endswith(("?", "？", "؟")))
