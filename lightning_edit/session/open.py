"""A run of edits in Python: the edited model of a run folder, to ask, edit, undo, redo and report.

Public as ``EditedModel.open("runs/x")``; the results of ``EditTrainer.edit`` have the same handle.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any, cast

import yaml
from jsonargparse import ArgumentParser
from rich.console import Console
from torch import nn

import lightning_edit.editors as editors
from lightning_edit.editors.base import Editor
from lightning_edit.editors.build import build_editor as revive
from lightning_edit.editors.build import find_editor
from lightning_edit.edits.delta import Delta
from lightning_edit.edits.edited_model import EditedModel, listed_ids, next_number, require_question
from lightning_edit.edits.exclusive import exclusive
from lightning_edit.edits.ledger import Ledger
from lightning_edit.edits.protocols import BoundEditor, Conditions
from lightning_edit.edits.run_journal import open_journal
from lightning_edit.evaluation.attributed import SCHEMA, FactAttribution
from lightning_edit.evaluation.scorer import continue_greedily
from lightning_edit.exceptions import ConfigError, LedgerError
from lightning_edit.export.runtime_folder import EDITOR, read_shipped
from lightning_edit.models.loading import load_language_model
from lightning_edit.models.prompt_encoder import PromptEncoder
from lightning_edit.models.prompt_format import PromptFormat
from lightning_edit.models.weights import weights_hash
from lightning_edit.report.moved_facts import moved_facts
from lightning_edit.report.table import render
from lightning_edit.storage.results import read_results
from lightning_edit.storage.run_folder import RunFolder
from lightning_edit.storage.run_lock import run_lock
from lightning_edit.types import EditRequest


class EditedRun(EditedModel):
    """Language model with the edits of a run folder: generate, edit, undo, redo, report.

    Every change is written to the run's journal, as ``lightning-edit undo`` and ``redo`` write it,
    so ``lightning-edit export`` and a later :func:`open_run` follow it. Scores in ``results.json``
    stay those of the run. Edits that were written together are one commit: they are taken back
    together.

    Args:
        folder: The run's folder.
        ledger: Ledger of its journal, with the edits in force.
        prompts: Tokenizer of the language model, with the format of prompts.
        editor: Editor that writes further edits; ``None``: :meth:`edit` is refused.
    """

    def __init__(
        self, folder: Path, ledger: Ledger, prompts: PromptEncoder, editor: Editor | None
    ) -> None:
        # Not `super().__init__`: that opens a ledger in memory.
        self.folder = RunFolder(folder)
        self.ledger = ledger
        self.model = ledger.model
        self.prompts = prompts
        self.tokenizer = prompts.tokenizer
        self.editor = cast("BoundEditor", editor)  # `edit` refuses without one
        journal = ledger.journal
        made = [] if journal is None else [name for one in journal.commits() for name in one.ids]
        self._named = next_number(made)

    @property
    def results(self) -> dict[str, Any]:
        """Content of ``results.json``: the scores of the run.

        Raises:
            DataError: If the run has not ended.
        """
        return read_results(self.folder.path)

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the requests in force, in the order of their commits."""
        return self.ledger.request_ids

    def edit(
        self,
        requests: EditRequest | Mapping[str, Any] | Sequence[EditRequest | Mapping[str, Any]],
        seed: int = 0,
        conditions: Conditions | None = None,
    ) -> "EditedRun":
        """Write further requests on top of the run's edits, all of them or none.

        A warning names requests whose answer the model does not give afterwards, teacher forced.

        Args:
            requests: One or more requests, or dictionaries with at least ``prompt`` and ``target``.
            seed: Seed of everything random in the edit.
            conditions: What every commit must meet, see :meth:`EditedModel.edit`.

        Returns:
            This handle.

        Raises:
            ConfigError: If the run's editor is not known here.
        """
        if self.editor is None:
            raise ConfigError(
                f"the editor of {self.folder.path} is not one of this library, or its settings are "
                "not on disk; give it as `EditedModel.open(run, editor=…)` to edit further"
            )
        with self._writing():
            super().edit(requests, seed, conditions)
        return self

    def commit(
        self,
        delta: Delta,
        requests: EditRequest | Mapping[str, Any] | Sequence[EditRequest | Mapping[str, Any]] = (),
    ) -> "EditedRun":
        """Commit a delta that was made elsewhere, in the model and in the run's journal.

        Args:
            delta: The update of the model's weights.
            requests: The facts that it teaches; see :meth:`EditedModel.commit`.

        Returns:
            This handle.
        """
        with self._writing():
            super().commit(delta, requests)
        return self

    def generate(self, prompt: str, max_new_tokens: int = 16) -> str:
        """Generate a greedy continuation of a prompt, up to the end of the text.

        Args:
            prompt: Text to continue; with a chat format the user's message.
            max_new_tokens: Maximum number of new tokens.

        Returns:
            The continuation, without the prompt.
        """
        if self.editor is not None:
            return super().generate(prompt, max_new_tokens)
        require_question(prompt, max_new_tokens)
        return continue_greedily(self.model, self.prompts, prompt, max_new_tokens)

    def undo(self, ids: str | Sequence[str] | None = None) -> "EditedRun":
        """Undo edits, in the model and in the run's journal.

        Args:
            ids: Request ids to undo; ``None``: all.

        Returns:
            This handle.
        """
        with self._writing(), exclusive(self.model):
            gone = self.ledger.request_ids if ids is None else listed_ids(ids)
            self.ledger.undo(gone, by="user")
        return self

    def redo(self, ids: str | Sequence[str] | None = None) -> "EditedRun":
        """Redo undone edits: put them back into force at their old positions.

        Args:
            ids: Requests that were undone; ``None``: all.

        Returns:
            This handle; the model has the bits that it had with these edits.
        """
        with self._writing(), exclusive(self.model):
            back = self.ledger.undone_ids if ids is None else listed_ids(ids)
            self.ledger.redo(back, by="user")
        return self

    def attribute(
        self,
        facts: Any = None,
        top: int | None = None,
        by: str = "auto",
        measure: int = 0,
        count: int = 5,
    ) -> list[FactAttribution]:
        """Attribute the change of facts to the edits in force; see :meth:`EditedModel.attribute`.

        Args:
            facts: The facts; ``None``: those that moved most among the run's probes that must not
                change, and the facts around its edits.
            top: Number of edits that are listed for each fact; ``None``: all.
            by: ``auto``, ``columns`` or ``undo``.
            measure: Number of commits of each fact that are also measured by leaving them out.
            count: Without ``facts``, their number.

        Returns:
            One attribution a fact.

        Raises:
            DataError: If the run has scored no such fact.
        """
        if not self.ledger.request_ids:
            facts = facts or ()  # refused there, with the reason
        elif facts is None:
            separators = self._separators()
            facts = [
                replace(fact, separator=separators.get(fact.edit_id or ""))
                for fact in moved_facts(self.folder.path, count)
            ]
        return super().attribute(facts, top, by, measure)

    def _separators(self) -> dict[str, str | None]:
        """Return the text between prompt and answer of every edit in force, by id."""
        entries = self.ledger.in_force.entries
        rows = (row for entry in entries for row in entry.requests)
        return {str(row["id"]): row.get("separator") for row in rows if "id" in row}

    def keep_attributions(self, found: Sequence[FactAttribution]) -> None:
        """Write attributions to the run's folder, for a section of the page.

        Args:
            found: The attributions.
        """
        content = {"schema": SCHEMA, "facts": [one.to_row() for one in found]}
        self.folder.write_json(self.folder.attribution, content)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold the run folder; of a run of several processes the first one writes it."""
        journal = self.ledger.journal
        if journal is not None and not journal.ranks.is_first:
            raise LedgerError(
                f"this is process {journal.ranks.rank} of {journal.ranks.size} of the run, and "
                f"{self.folder.path} is written by process 0 alone; change the run there "
                "(`if trainer.is_global_zero:`), or open the folder in one process"
            )
        with run_lock(self.folder.path):
            yield

    def report(self, page: str | Path | None = None) -> str:
        """Return the result tables of the run as text.

        Args:
            page: File to write the self-contained HTML page to; ``None``: no page.

        Returns:
            The tables, at most 80 columns wide.

        Raises:
            DataError: If the run has not ended.
            ReportError: If the page cannot be written.
        """
        text = StringIO()
        Console(file=text, width=80, highlight=False).print(render(self.results))
        if page is not None:
            # The page needs the optional extra `report`, which a handle does not.
            from lightning_edit.report.page import write_page

            write_page([self.folder.path], Path(page))
        return text.getvalue()


class RunResults(dict[str, Any]):
    """Content of ``results.json``, with the edited model of the run.

    Args:
        content: The content.
        edited: The run's edited model; under the protocol ``single`` no edit is in force.
    """

    def __init__(self, content: Mapping[str, Any], edited: EditedRun) -> None:
        super().__init__(content)
        self.edited = edited


def open_run(
    run: str | Path,
    editor: Editor | None = None,
    language_model: tuple[nn.Module, Any] | None = None,
) -> EditedRun:
    """Open the edited model of a run folder.

    Args:
        run: Folder that ``lightning-edit edit`` or ``EditTrainer.edit`` wrote.
        editor: Editor for further edits; ``None``: built as in the run, where it is one of this
            library or, if it acts at run time, a subclass of ``Editor`` that is imported.
        language_model: The unedited model and its tokenizer; ``None``: loaded as in the run.

    Returns:
        The model with the run's edits in force.

    Raises:
        LedgerError: If the folder holds no edits, or the model is not the one that was edited.
        ConfigError: If the folder does not say how its language model was loaded.
        ModelLoadError: If the language model cannot be loaded.
    """
    folder = RunFolder(run)
    opening = open_journal(folder.path).opening
    assert opening is not None  # checked there
    described, loading = _settings(folder)
    if language_model is None:
        if loading is None:
            raise ConfigError(
                f"{folder.path} does not say how its language model was loaded, since it has "
                "neither config.yaml nor results.json; give `language_model`"
            )
        language_model = load_language_model(**loading)
    model, tokenizer = language_model
    if weights_hash(model) != opening["model"]:
        raise LedgerError(
            f"the language model ({getattr(model, 'name_or_path', 'given')}) has other weights "
            f"than the one that {folder.path} edited; give the unedited one as `language_model`"
        )
    shipped = None
    if editor is None and (folder.editor / EDITOR).is_file():
        shipped = read_shipped(folder.editor)
        if find_editor(shipped.editor["class"], shipped.module) is not None:
            editor = revive(shipped.editor, shipped.module)
    elif editor is None and described is not None:
        editor = build_editor(described)
    prompts = PromptEncoder.for_model(model, _with_format(tokenizer, opening))
    runtime = None
    if editor is not None:
        editor.bind(model, prompts)
        if shipped is not None:
            editor.load_parts(shipped.parts)
        runtime = editor.runtime()
    ledger = Ledger(model, editor, folder.ledger, runtime)
    ledger.replay()
    if editor is not None:
        editor.last_ledger = ledger
    return EditedRun(folder.path, ledger, prompts, editor)


def _with_format(tokenizer: Any, opening: Mapping[str, Any]) -> Any:
    """Return the tokenizer with the format of prompts that the journal records."""
    stored = (opening.get("language_model") or {}).get("prompts")
    if stored is None or isinstance(tokenizer, PromptEncoder):
        return tokenizer
    return PromptEncoder(tokenizer, PromptFormat.stored(stored))


def _settings(folder: RunFolder) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Return a run's editor (class and arguments), and how its language model was loaded."""
    described: dict[str, Any] | None = None
    loading: dict[str, Any] | None = None
    if folder.results.exists():
        results = read_results(folder.path)
        described = results["editor"]
        stored = results["language_model"]
        loading = {"name_or_path": stored["name"], "dtype": stored["dtype"]}
        loading["add_bos"] = bool(stored.get("bos", False))
    config_file = folder.path / "config.yaml"
    if config_file.exists():
        config = yaml.safe_load(config_file.read_text(encoding="utf-8"))
        loading = {
            "name_or_path": config["lm"],
            "dtype": config["lm_dtype"],
            "revision": config["lm_revision"],
            "add_bos": config["lm_bos"],
        }
        if described is None:
            described = _described(config["model"], int(config.get("seed_everything") or 0))
    return described, loading


def _described(value: Any, seed: int) -> Any:
    """Convert a class of a configuration to the form of ``results.json``.

    The seed of the run is added to that of each editor, as when the run was begun.
    """
    if not isinstance(value, dict) or "class_path" not in value:
        return value
    arguments = {name: _described(one, seed) for name, one in value.get("init_args", {}).items()}
    if type(arguments.get("seed")) is int:
        arguments["seed"] += seed
    return {"class": value["class_path"].rpartition(".")[2], "args": arguments}


def build_editor(described: Mapping[str, Any]) -> Editor | None:
    """Build an editor of this library from its description in ``results.json``.

    Args:
        described: ``class`` and ``args``, with nested editors in the same form.

    Returns:
        The editor; ``None`` if it, or one inside it, is no class of this library.
    """
    if described["class"] not in editors.__all__:
        return None
    kind = getattr(editors, described["class"])
    # The parser follows `**options` into base classes, as the command line does.
    wanted = set(ArgumentParser().add_class_arguments(kind))
    arguments: dict[str, Any] = {}
    for name, value in described["args"].items():
        if name not in wanted:
            continue
        arguments[name] = _to_argument(value)
        if isinstance(value, dict) and arguments[name] is None:
            return None
    editor: Editor = kind(**arguments)
    return editor


def _to_argument(value: Any) -> Any:
    """Convert a plain value to an argument: a nested editor, or requests."""
    if isinstance(value, dict) and value.keys() - {"auto"} == {"class", "args"}:
        return build_editor(value)
    if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
        return [EditRequest.from_dict(one) for one in value]
    return value
