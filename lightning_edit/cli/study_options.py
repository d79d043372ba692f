"""Command-line options of ``sweep`` and ``tradeoff``: editor, data and language model."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace

from lightning_edit.analysis.sweep.measure import Case, digest
from lightning_edit.cli.check_arguments import check_yaml_arguments
from lightning_edit.cli.lightning import (
    RunParser,
    add_language_model,
    check_names,
    load_configured_model,
    silence_lightning,
)
from lightning_edit.cli.parse_errors import parse_error_reason
from lightning_edit.datamodules.base import EditDataModule
from lightning_edit.editors.base import Editor
from lightning_edit.editors.locate.base import LocateThenEdit
from lightning_edit.editors.module_runtime import PromptDecisionResponder
from lightning_edit.editors.wrappers.base import WrappedEditor
from lightning_edit.evaluation.evaluator import Evaluation
from lightning_edit.evaluation.scorer import Scorer
from lightning_edit.exceptions import ConfigError, LightningEditError
from lightning_edit.inference.model_responder import ModelResponder
from lightning_edit.models.prompt_encoder import PromptEncoder
from lightning_edit.models.view import resolve
from lightning_edit.models.weights import weights_hash
from lightning_edit.session.trainer import default_folder
from lightning_edit.statistics.cache import names_in_cache
from lightning_edit.storage.atomic import write_atomic, write_error
from lightning_edit.storage.run_folder import RunFolder
from lightning_edit.types import Mode, cases_of


def study_parser(verb: str, description: str, facts: int) -> RunParser:
    """Return an argument parser with the options that all studies share.

    Args:
        verb: Name of the verb.
        description: Description for ``--help``.
        facts: Default number of cases.
    """
    parser = RunParser(prog=f"lightning-edit {verb}", description=description)
    parser.add_argument("-c", "--config", action="config", help="YAML file with these options")
    group = parser.add_argument_group("Study")
    group.add_argument("--facts", type=int, default=facts, help="cases to edit, the first ones")
    group.add_argument(
        "--split",
        type=str,
        default="val",
        help="split of the cases, if the data has it, else test",
    )
    group.add_argument("--mode", type=Mode, default="tf", help="teacher forced or generated")
    group.add_argument("--batch_size", type=int, default=16, help="cases per target search")
    group.add_argument("--eval_batch_size", type=int, default=64, help="rows per scoring pass")
    group.add_argument("--seed", type=int, default=0, help="seed of everything random")
    group.add_argument(
        "--device", type=str | None, default=None, help="such as cuda:0; default: a GPU if any"
    )
    group.add_argument(
        "--run",
        type=str | None,
        default=None,
        help="folder of the study; an unfinished study is resumed",
    )
    group.add_argument(
        "--figures", type=list[str], default=["png"], help="formats of the plot: png, pdf, svg"
    )
    parser.add_lightning_class_args(Editor, "model", subclass_mode=True)
    parser.add_lightning_class_args(EditDataModule, "data", subclass_mode=True)
    add_language_model(parser)
    return parser


@dataclass(frozen=True)
class Study:
    """Inputs of a study: editor, language model, cases and folder.

    Args:
        parser: Argument parser of the verb.
        argv: Arguments of the verb.
        config: The parsed arguments.
        editor: The editor as configured, not bound.
        model: The language model.
        prompts: Its tokenizer, with the format of prompts.
        cases: The cases to edit.
        split: Data split of the cases.
        folder: Folder of the study.
    """

    parser: RunParser
    argv: tuple[str, ...]
    config: Namespace
    editor: Editor
    model: Any
    prompts: PromptEncoder
    cases: list[Case]
    split: str
    folder: RunFolder

    @classmethod
    def from_arguments(cls, parser: RunParser, argv: Sequence[str], verb: str) -> "Study":
        """Parse the arguments; load the editor, the data and the language model.

        Args:
            parser: Argument parser of the verb.
            argv: Arguments of the verb.
            verb: Name of the verb.

        Raises:
            LightningEditError: An error that the user can fix.
        """
        check_yaml_arguments(argv)
        check_names(argv)
        silence_lightning("edit")
        config = parser.parse_args(list(argv))
        for name in ("facts", "batch_size", "eval_batch_size"):
            if config[name] < 1:
                raise ConfigError(f"--{name} must be 1 or more, got {config[name]}")
        objects = instantiate(parser, config)
        if objects.model.needs_fit:
            raise ConfigError(
                f"{type(objects.model).__name__} is trained for the layers that it edits, so "
                f"`{verb}` has nothing to compare; train one with `lightning-edit fit` for each "
                "choice"
            )
        objects.model.check_arguments()  # before a large model is loaded
        cases, split = _cases(objects.data, config.split, config.facts)
        if split != config.split:
            sys.stderr.write(
                f"The data have no split `{config.split}`, so the study takes the first facts of "
                f"`{split}`. Edit and report others, or give a split of its own: --data.val_path "
                "or --data.fractions.\n"
            )
        model, prompts = load_configured_model(config)
        objects.model.require_kind(resolve(model))  # before statistics are asked for
        device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
        placed: Any = model  # transformers' stub of `to` wants no str
        placed.to(device)
        folder = config.run or default_folder(f"{verb}-{type(objects.model).__name__}")
        return cls(
            parser, tuple(argv), config, objects.model, placed, prompts, cases, split,
            RunFolder(folder),
        )  # fmt: skip

    @property
    def mode(self) -> Mode:
        """Scoring mode: teacher forced (``tf``) or generated (``gen``)."""
        mode: Mode = self.config.mode
        return mode

    def editor_with(self, *options: str) -> Editor:
        """Instantiate the editor with additional options.

        Args:
            options: For example ``--model.layers``, ``[3]``.

        Raises:
            ConfigError: If the editor rejects them.
        """
        config = self.parser.parse_args([*self.argv, *options])
        editor: Editor = instantiate(self.parser, config).model
        return editor

    def configured_editor(self) -> Namespace:
        """Return the configuration of the editor with that of each host, defaults included."""
        _, named = innermost_editor(self.editor)
        found: Namespace = self.parser.parse_args([*self.argv, *named]).model
        return found

    def evaluation(self) -> Evaluation:
        """Return the evaluation with its pristine baseline; a resumed study reads it from disk."""
        # Editors that act at run time may ask in plain rows alone; the baseline is asked alike.
        ask = ModelResponder if self.editor.edits_weights else PromptDecisionResponder
        size = self.config.eval_batch_size
        responder = ask(self.model, self.prompts, size)
        scorer = Scorer(self.model, self.prompts, size, (self.mode,), responder=responder)
        evaluation = Evaluation(scorer)
        evaluation.take_baseline([one for case in self.cases for one in case], self.folder)
        return evaluation

    def identity(self) -> dict[str, Any]:
        """Return the settings that a resumed study must share with its record."""
        requests = [one.to_dict() for case in self.cases for one in case]
        name, form = type(self.editor).__name__, self.prompts.form
        host, _ = innermost_editor(self.editor)
        cached = isinstance(host, LocateThenEdit) and host.statistics == "auto"
        return {
            "editor": {"class": name, "arguments": _as_dict(self.config.model)},
            "language_model": {
                "name": self.config.lm,
                "dtype": self.config.lm_dtype,
                "bos": self.config.lm_bos,
                **({"prompts": form.to_dict()} if form.chat or form.end_answers else {}),
                "sha256": weights_hash(self.model),
            },
            **(
                {"statistics": names_in_cache(self.model, self.prompts.tokenizer)} if cached else {}
            ),
            "data": {
                "class": self.config.data.class_path.rpartition(".")[2],
                "split": self.split,
                "cases": len(self.cases),
                "sha256": digest(requests),
            },
            "mode": self.mode,
            # A study of an earlier version judged generated texts by another rule.
            **({"rule": "answer"} if self.mode == "gen" else {}),
            "seed": self.config.seed,
        }

    def resume_line(self, verb: str) -> str:
        """Return the command that resumes this study.

        Args:
            verb: Name of the verb.
        """
        given = list(self.argv)
        if self.config.run is None:
            given += ["--run", str(self.folder.path)]
        return f"lightning-edit {verb} {shlex.join(given)}"

    def write(self, path: Path, data: bytes) -> None:
        """Write a file of the study atomically.

        Args:
            path: A file in the folder.
            data: Its content.

        Raises:
            LedgerWriteError: If the write fails.
        """
        try:
            self.folder.path.mkdir(parents=True, exist_ok=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, data)
        except OSError as error:
            raise write_error(error, path, "The model is unchanged.") from error


def instantiate(parser: RunParser, config: Namespace) -> Any:
    """Instantiate the configured classes (editor and data module).

    Args:
        parser: The parser that read ``config``.
        config: The parsed arguments.

    Raises:
        ConfigError: If a class rejects its arguments.
    """
    try:
        return parser.instantiate(config)
    except LightningEditError:
        raise
    except ValueError as error:
        raise ConfigError(parse_error_reason(str(error))) from error


def innermost_editor(editor: Editor) -> tuple[Editor, list[str]]:
    """Return the innermost editor of a wrapped one, and the options that name it explicitly.

    Args:
        editor: Any editor.

    Returns:
        The editor whose layers are edited, and one ``--model.editor…`` option per wrapper.
    """
    options, prefix = [], "--model"
    while isinstance(editor, WrappedEditor):
        editor = editor.editor
        prefix += ".editor"
        options += [prefix, type(editor).__name__]
    return editor, options


def layer_argument(host: Editor) -> str | None:
    """Return the name of the argument that says which layers an editor edits.

    Args:
        host: The innermost editor.

    Returns:
        ``layers``, a list; ``layer``, the number of one; ``None`` if it has neither.
    """
    return next((name for name in ("layers", "layer") if hasattr(host, name)), None)


def own_sites(model: Any, host: Editor) -> tuple[list[int], int]:
    """Return the default layers of an editor of one, and the number of blocks of its stack.

    Args:
        model: The language model.
        host: The innermost editor.
    """
    view = resolve(model)
    sites = host.default_sites(view)
    stack = getattr(host, "stack", None) or next(iter(sites))
    return sites.get(stack, []), len(view.stack(stack))


def layer_count(model: Any, host: Editor) -> int:
    """Return the number of layers to choose from: of an editor of one those of its own stack.

    Args:
        model: The language model.
        host: The innermost editor.
    """
    one = layer_argument(host) == "layer"
    return own_sites(model, host)[1] if one else resolve(model).num_blocks


def require_layers(host: Editor, windows: Sequence[Sequence[int]]) -> None:
    """Refuse several layers at once for an editor of one.

    Args:
        host: The innermost editor.
        windows: Choices of layers.

    Raises:
        ConfigError: If the editor edits one layer and a choice has more.
    """
    several = next((list(window) for window in windows if len(window) > 1), None)
    if layer_argument(host) == "layer" and several is not None:
        raise ConfigError(
            f"{type(host).__name__} edits one layer, got {several} together; give numbers "
            "(--candidates '[2,3]'), and no --width above 1"
        )


def layer_value(argument: str, layers: Sequence[int]) -> list[int] | int:
    """Return layers as the value of the argument that names them.

    Args:
        argument: Name of the argument, see :func:`layer_argument`.
        layers: The layers; a single one for ``layer``.
    """
    return list(layers) if argument == "layers" else layers[0]


def editor_name(editor: Editor) -> str:
    """Return the name of an editor with its wrapped editors, such as ``RECT(MEMIT)``.

    Args:
        editor: Any editor.
    """
    name = type(editor).__name__
    return f"{name}({editor_name(editor.editor)})" if isinstance(editor, WrappedEditor) else name


def _cases(data: EditDataModule, split: str, facts: int) -> tuple[list[Case], str]:
    data.prepare_data()
    limit = data.limit
    # Of these cases alone, so that nobody is warned of conflicts among others.
    data.limit = facts if limit is None else min(limit, facts)
    try:
        requests = data.requests(split)
        if not requests:
            split = data.split
            requests = data.edit_requests()
    finally:
        data.limit = limit
    return cases_of(requests), split


def _as_dict(config: Namespace) -> Mapping[str, Any]:
    """Return a class path and its arguments as plain containers."""
    plain: Mapping[str, Any] = config.as_dict()
    return plain
