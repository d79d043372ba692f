"""Durability callback: which edits survive later training, a cast, quantisation or a merge."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torchmetrics import SumMetric

from lightning_edit.callbacks.base import EvalContext, Measurement, MeasurementCallback
from lightning_edit.edits.request_rows import as_requests
from lightning_edit.edits.run_journal import open_journal
from lightning_edit.evaluation.conversions import CONVERSIONS, Conversion, converted
from lightning_edit.evaluation.outcomes import ProbeScore, ScoredProbe, probes_of
from lightning_edit.evaluation.scorer import Scorer
from lightning_edit.exceptions import ConfigError
from lightning_edit.types import EditRequest, Mode

#: Aspects that show whether an edit is there.
_ASPECTS = ("reliability", "generalization")
_Key = tuple[str, str]


class DurabilityCallback(MeasurementCallback):
    """Durability: the same edits asked again after whatever happens to the model later.

    In any Trainer it asks the edits before the first step and at every validation:
    ``durability/held`` is the share of their questions (the edited prompt and its rewordings) that
    are answered right now, ``durability/survived`` the share of those right before the first step
    that still are. At each measurement copies of the model are converted, and
    ``durability.<conversion>/survived`` is the share of the same questions that are right there.
    Under ``EditTrainer`` the edits are those of the run, and survival is against the edited model
    as it is. A copy of the model is in memory meanwhile.

    Args:
        conversions: Some of ``float16``, ``bfloat16``, ``int8`` (needs ``torchao``) and, under
            ``EditTrainer``, ``merge`` (the mean of edited and unedited weights).
        run: Folder of a run, whose edits in force are asked in other training.
        requests: Edits to ask in other training, beside those of ``run``.
        modes: ``tf``: every token predicted under teacher forcing; ``gen``: the generated text
            begins with the answer. With both, a question must be right in both.
        limit: Maximum number of edits, the first ones; ``None``: all.
        batch_size: Rows per batch; no score depends on it.
        options: See :class:`~lightning_edit.callbacks.base.MeasurementCallback`.

    Raises:
        ConfigError: If a conversion is unknown; when it measures, if there are no edits, a
            conversion is not possible, or the editor acts at run time.
        LedgerError: If ``run`` holds no edits.
    """

    def __init__(
        self,
        conversions: Sequence[Conversion] = ("float16", "bfloat16"),
        run: str | Path | None = None,
        requests: Sequence[EditRequest | Mapping[str, Any]] = (),
        modes: Sequence[Mode] = ("tf",),
        limit: int | None = 200,
        batch_size: int = 64,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.conversions = tuple(conversions)
        self.run = run
        self.requests = as_requests(requests, may_be_empty=True)
        self.modes = tuple(modes)
        self.limit = limit
        self.batch_size = batch_size
        self.first: dict[_Key, bool] = {}
        self.require(
            conversions=(set(conversions) <= set(CONVERSIONS), f"some of {', '.join(CONVERSIONS)}"),
            modes=(bool(modes) and set(modes) <= {"tf", "gen"}, "tf, gen or both"),
            limit=(limit is None or limit >= 1, "at least 1, or None"),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the checkpoint state: which questions were right before the first step."""
        return super().state_dict() | {"first": [[*key, ok] for key, ok in self.first.items()]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the checkpoint state that :meth:`state_dict` returned.

        Args:
            state_dict: Plain containers.
        """
        super().load_state_dict(state_dict)
        self.first = {(edit, prompt): bool(ok) for edit, prompt, ok in state_dict["first"]}

    def reset(self) -> None:
        """Reset the state before a new run."""
        super().reset()
        self.first = {}

    def measure(self, context: EvalContext) -> Measurement:
        """Ask the edits on the model as it is, and on converted copies of it.

        Args:
            context: The model.
        """
        ledger = context.ledger
        if context.responder is not None:
            raise ConfigError(
                "DurabilityCallback converts the weights of a model, but this editor acts at run "
                "time and changes none; leave the callback out"
            )
        if ledger is not None and not len(ledger.in_force):
            return Measurement({})
        requests = context.requests if ledger is not None else self._edits()
        probes = [
            probe
            for request in requests[: self.limit]
            for probe in probes_of(request)
            if probe.probe.aspect in _ASPECTS
        ]
        now = self._right(context, context.model, probes)
        if ledger is not None or not self.first:
            self.first = now
        held = [key for key, right in self.first.items() if right]
        values = {"durability/held": _share(context, list(now.values()))}
        if ledger is None:
            values["durability/survived"] = _share(context, [now[key] for key in held])
        rows: list[dict[str, Any]] = [
            {"edit_id": edit, "prompt": prompt, "right": ok} for (edit, prompt), ok in now.items()
        ]
        pristine: dict[str, Tensor] | None = None
        if ledger is not None:
            pristine = {name: one.pristine for name, one in ledger.touched.items()}
        for kind in self.conversions:
            copied = converted(context.model, kind, pristine)
            there = self._right(context, copied, probes)
            del copied  # one copy at a time
            name = f"durability.{kind}/survived"
            values[name] = _share(context, [there[key] for key in held])
            for row in rows:
                row[kind] = there[row["edit_id"], row["prompt"]]
        # Without a question that held there is nothing to survive.
        return Measurement({k: v for k, v in values.items() if v == v}, rows)

    def _edits(self) -> list[EditRequest]:
        given = list(self.requests)
        if self.run is not None:
            entries = open_journal(Path(self.run)).active()
            rows = [row for entry in entries for row in entry.requests]
            given += [EditRequest.from_dict(dict(row)) for row in rows]
        if not given:
            raise ConfigError(
                "DurabilityCallback asks edits again, but got none; outside `lightning-edit edit` "
                "give it `run`, the folder of a run, or `requests`"
            )
        return given

    def _right(
        self, context: EvalContext, model: Any, probes: Sequence[ScoredProbe]
    ) -> dict[_Key, bool]:
        layout = context.layout if model is context.model else None
        scorer = Scorer(model, context.encoder, self.batch_size, self.modes, layout=layout)
        scores = [score for _, score in context.map_sharded(probes, scorer.score)]
        return {(one.edit_id, one.prompt): self._is_right(one) for one in scores}

    def _is_right(self, score: ProbeScore) -> bool:
        by_mode = {"tf": score.em, "gen": score.answer_gen}
        return all(by_mode[mode] == 1.0 for mode in self.modes)


def _share(context: EvalContext, right: Sequence[bool]) -> float:
    """Return the share of all processes' questions that are right; NaN without any."""
    good, count = SumMetric().to(context.device), SumMetric().to(context.device)
    good.update(float(sum(right)))
    count.update(float(len(right)))
    total = float(count.compute())
    return float(good.compute()) / total if total else float("nan")
