"""LightningCLI with editors: adds ``edit`` to ``fit``, ``validate``, ``test`` and ``predict``."""

import json
import logging
import shlex
import sys
import warnings
from collections.abc import Sequence
from inspect import isabstract
from pathlib import Path
from typing import Any, Literal, NoReturn, cast

import lightning.pytorch as pl
import lightning.pytorch.callbacks as lightning_callbacks
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

import lightning_edit.callbacks as callbacks
import lightning_edit.datamodules as data_modules
import lightning_edit.editors as editors
from lightning_edit.cli.check_arguments import check_yaml_arguments, closest, option_values
from lightning_edit.cli.parse_errors import HELP, parse_error_reason
from lightning_edit.cli.report import show
from lightning_edit.cli.run_folder_options import (
    FOUND_BY_NAME,
    find_checkpoint,
    name_save_dir,
    place_in_run,
)
from lightning_edit.editors.arguments import shift_seeds
from lightning_edit.editors.base import Editor
from lightning_edit.exceptions import ConfigError, LightningEditError
from lightning_edit.models.loading import load_language_model
from lightning_edit.models.prompt_encoder import PromptEncoder
from lightning_edit.models.prompt_format import PromptFormat
from lightning_edit.session.checkpoint_io import use_plain_checkpoints
from lightning_edit.session.trainer import EditTrainer, default_folder
from lightning_edit.storage.atomic import write_atomic, write_error
from lightning_edit.storage.run_lock import LOCK, require_unlocked

log = logging.getLogger(__name__)


class SaveRunConfig(SaveConfigCallback):
    """Callback that saves ``config.yaml`` in the run's folder; a resumed run keeps its own."""

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Save the configuration, unless this run goes on in a folder or only evaluates it.

        Args:
            trainer: The trainer.
            pl_module: The module that is run.
            stage: Lightning's stage.

        Raises:
            LedgerWriteError: If it cannot be written.
        """
        path = Path(trainer.default_root_dir) / self.config_filename
        begins = stage == "fit" and self.config.get("ckpt_path") is None
        if path.exists() and not begins:
            return
        text = self.parser.dump(self.config, skip_unset=False)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # A run that is killed meanwhile has the file whole or not at all.
            write_atomic(path, text.encode())
        except OSError as error:
            raise write_error(error, path, "Nothing was edited yet.") from error


class RunParser(LightningArgumentParser):
    """Argument parser with short errors: the option and the reason, without the usage text."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise a parser error as ``ConfigError``.

        Args:
            message: Message of the parser.
            ex: Its cause.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(parse_error_reason(message) + HELP) from ex


def add_language_model(parser: LightningArgumentParser) -> None:
    """Add the language model options (``--lm``, ``--lm_dtype``, ``--lm_bos``, ``--lm_revision``).

    Args:
        parser: Parser of one verb.
    """
    group = parser.add_argument_group("Language model")
    group.add_argument(
        "--lm", type=str, default="atlas", help="atlas, atlas-t5, a folder, or a hub name"
    )
    group.add_argument("--lm_dtype", type=str, default="float32", help="type of its weights")
    group.add_argument(
        "--lm_bos",
        type=bool,
        default=False,
        help="put BOS before every text",
    )
    group.add_argument("--lm_revision", type=str | None, default=None, help="revision on the hub")
    group.add_argument(
        "--lm_chat",
        type=bool | Literal["both"],
        default=False,
        help="ask through the model's chat template: prompts are the user's turn; both: write "
        "every edit for the template and for plain text",
    )
    group.add_argument(
        "--lm_system", type=str | None, default=None, help="system message of the chat"
    )
    group.add_argument(
        "--lm_chat_options",
        type=dict[str, Any],
        default={},
        help="variables of the chat template, such as {enable_thinking: false}",
    )
    group.add_argument(
        "--lm_end_answers",
        type=bool,
        default=False,
        help="write answers with their end (end of turn, EOS), so that the model stops there",
    )
    group.add_argument(
        "--lm_trust_remote_code",
        type=bool,
        default=False,
        help="run the Python code that the model brings",
    )


def model_options(parser: LightningArgumentParser, config: Any) -> list[str]:
    """Return the language model's options as a command line has them: ``--lm`` and what differs.

    Args:
        parser: Parser with the options of :func:`add_language_model`.
        config: Parsed options.
    """
    found = ["--lm", str(config.lm)]
    for name, value in vars(config).items():
        if name.startswith("lm_") and value != parser.get_default(name):
            found += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
    return found


def load_configured_model(config: Any) -> tuple[Any, PromptEncoder]:
    """Load the language model of ``--lm`` and its tokenizer, in the format of ``--lm_chat``.

    Args:
        config: Parsed options of :func:`add_language_model`.

    Returns:
        The model, and its tokenizer as a prompt encoder.

    Raises:
        ModelLoadError: If it cannot be read.
        ConfigError: If the tokenizer has no chat template.
    """
    model, tokenizer = load_language_model(
        config.lm,
        config.lm_dtype,
        config.lm_revision,
        config.lm_bos,
        config.lm_trust_remote_code,
    )
    form = PromptFormat(
        config.lm_chat, config.lm_system, None, config.lm_chat_options, config.lm_end_answers
    )
    return model, PromptEncoder.for_model(model, PromptEncoder(tokenizer, form))


class EditCLI(LightningCLI):
    """LightningCLI for this library's editors and data modules.

    Classes of ``lightning_edit.editors`` and ``lightning_edit.datamodules`` are given by bare name,
    any other LightningModule by its dotted path.
    """

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the subcommands, each with the method arguments that other options fill."""
        verbs = LightningCLI.subcommands()
        # `--run` is an option of every verb, see `add_arguments_to_parser`.
        verbs["edit"] = {"model", "datamodule", "seed", "run"}
        return verbs

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of the language model and of the run's folder.

        Args:
            parser: Parser of one verb.
        """
        add_language_model(parser)
        parser.add_argument(
            "--run",
            type=str | None,
            default=None,
            help="folder of the run: config.yaml, checkpoints, logs and what the verb writes. "
            "Default: runs/<time>-<class>",
        )

    def before_instantiate_classes(self) -> None:
        """Put everything that the run writes into its folder, and resolve ``--ckpt_path best``."""
        config = self.config[self.subcommand]
        name = config.model.class_path.rpartition(".")[2]
        if config.run is None:
            config.run = config.trainer.default_root_dir or str(default_folder(name))
        config.trainer.default_root_dir = config.run
        if self.subcommand == "edit" and config.trainer.logger is None:
            # Scores go to results.json; a logger is used only if the user names one.
            config.trainer.logger = False
        place_in_run(config.trainer, config.run)
        if self.subcommand in ("validate", "test", "predict") and config.ckpt_path in FOUND_BY_NAME:
            config.ckpt_path = find_checkpoint(Path(config.run), config.ckpt_path)
        if self.subcommand in ("validate", "test") and is_untrained(config.model.class_path):
            listed = config.trainer.callbacks or []
            if not any("lightning_edit" in one.class_path for one in listed):
                scoring: Any = Namespace(  # type: ignore[no-untyped-call]  # untyped there
                    class_path="lightning_edit.callbacks.EditEvaluation",
                    init_args=Namespace(),  # type: ignore[no-untyped-call]
                )
                config.trainer.callbacks = [*listed, scoring]

    def instantiate_classes(self) -> None:
        """Instantiate the model, the data module and the Trainer.

        Raises:
            ConfigError: If one of them rejects its arguments.
        """
        try:
            super().instantiate_classes()
        except LightningEditError:
            raise
        except ValueError as error:
            raise ConfigError(parse_error_reason(str(error))) from error

    def after_instantiate_classes(self) -> None:
        """Load the language model and bind it to the editor."""
        use_plain_checkpoints(self.trainer)
        if isinstance(self.model, Editor):
            self.model.check_arguments()  # before a large model is loaded
            shift_seeds(self.model, self._seed())
            if self.subcommand == "fit":
                self.model.require_training()
            config = self.config[self.subcommand]
            model, prompts = load_configured_model(config)
            if not prompts.form.chat and getattr(prompts.tokenizer, "chat_template", None):
                log.info(
                    "%s has a chat template, but prompts are given to it as plain text; to edit "
                    "and ask it as a chat, add --lm_chat true",
                    config.lm,
                )
            self.model.bind(model, prompts)

    def _set_seed(self) -> None:
        try:
            super()._set_seed()
        except ValueError as error:
            given = self._get(self.config, "seed_everything")
            raise ConfigError(
                f"--seed_everything: expected a number from 0 to {2**32 - 1}, got {given}"
            ) from error

    def _seed(self) -> int:
        return int(self._get(self.config, "seed_everything", default=0) or 0)

    def edit(self, **arguments: Any) -> None:
        """Run the verb ``edit`` with the seed of ``--seed_everything``, and print its results.

        Args:
            **arguments: Arguments of :meth:`~lightning_edit.session.trainer.EditTrainer.edit`.
        """
        seed = self._seed()
        folder = arguments["run"] = self.config[self.subcommand].run
        try:
            results = cast("EditTrainer", self.trainer).edit(**arguments, seed=seed)
        except (SystemExit, KeyboardInterrupt):
            # Lightning exits on Ctrl-C, after a graceful shutdown of the run.
            sys.stderr.write(_how_to_go_on(Path(folder)))
            raise SystemExit(1) from None
        if self.trainer.is_global_zero:
            show(results, results.edited.folder.path)

    def predict(self, **arguments: Any) -> None:
        """Run the verb ``predict``, and print what it returns, one JSON value a line.

        Args:
            **arguments: Arguments of Lightning's ``Trainer.predict``.
        """
        for batch in self.trainer.predict(**arguments) or []:
            for row in batch if isinstance(batch, list) else [batch]:
                sys.stdout.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")


def _callback_names() -> list[str]:
    """List the callbacks that a user can choose, without base classes and old names."""
    public = {name: getattr(callbacks, name) for name in callbacks.__all__}
    return [
        n for n, kind in public.items() if issubclass(kind, pl.Callback) and not isabstract(kind)
    ]


def check_names(argv: Sequence[str]) -> None:
    """Check class names of ``--model``, ``--data`` and callbacks; suggest a correction for typos.

    Imports every class with a bare name. Without this check a typo would end in an import error.

    Args:
        argv: Arguments of a verb.

    Raises:
        ConfigError: If ``--model``, ``--data`` or ``--trainer.callbacks+`` names no class.
    """
    for name in data_modules.__all__:
        getattr(data_modules, name)  # lazy import; the parser knows only imported classes
    for option, own, others in (
        ("--model", editors.__all__, ()),
        ("--data", data_modules.__all__, ()),
        ("--trainer.callbacks+", _callback_names(), lightning_callbacks.__all__),
    ):
        for value in option_values(argv, option):
            if value[:1] in "[{" or "." in value or "/" in value or value in {*own, *others}:
                continue
            close = closest(value, [*own, *others])
            hint = f"did you mean {close}? " if close else ""
            known = ", ".join(name for name in own if "Editor" not in name)
            raise ConfigError(
                f"{option} {value!r} is not known; {hint}Known: {known}. "
                "A class of your own is given by its dotted path."
            )


def silence_lightning(verb: str) -> None:
    """Filter Lightning's tips, irrelevant warnings and training logs.

    Args:
        verb: The verb that runs.
    """
    # `resume` passes arguments that are not those of `sys.argv`.
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
    # Without TensorBoard Lightning logs to CSV files; no need to warn.
    warnings.filterwarnings("ignore", message=r"Starting from v1\.9\.0")
    # Lightning 2.6 still uses a class that torch 2.13 deprecates.
    warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")
    lightning_log = logging.getLogger("lightning.pytorch")
    lightning_log.addFilter(lambda record: "Tip:" not in record.getMessage())
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "Tip:" not in record.getMessage()
    )
    if verb == "edit":
        lightning_log.setLevel(logging.WARNING)
        logging.getLogger("lightning.fabric").setLevel(logging.WARNING)


def _how_to_go_on(folder: Path) -> str:
    if (folder / "config.yaml").exists():
        return (
            "Interrupted. Every committed edit is on disk; go on with\n"
            f"  lightning-edit resume {shlex.quote(str(folder))}\n"
        )
    return "Interrupted before the first edit; give the same command again.\n"


def _why_no_config(folder: Path) -> str:
    """Explain why a folder cannot be resumed by its name alone."""
    if (folder / "ledger" / "journal.jsonl").exists():
        return (
            f"{folder} has edits but no config.yaml, so it was made in Python: go on with "
            "EditTrainer.edit(..., ckpt_path='last'), or give the options of the run to "
            f"`lightning-edit edit ... --run {folder} --ckpt_path last`"
        )
    if (folder / LOCK).exists():
        return (
            f"the run in {folder} was interrupted before its config.yaml was written, and before "
            "its first edit; start it again with the same `lightning-edit edit` command"
        )
    return f"{folder / 'config.yaml'} does not exist; give the folder of a run made by `edit`"


def _resume_arguments(rest: Sequence[str]) -> list[str]:
    if len(rest) < 1 or rest[0].startswith("-"):
        raise ConfigError("resume needs the folder of a run: lightning-edit resume RUN")
    require_unlocked(Path(rest[0]))
    config = Path(rest[0]) / "config.yaml"
    if not config.exists():
        raise ConfigError(_why_no_config(Path(rest[0])))
    return ["edit", "--config", str(config), "--run", rest[0], "--ckpt_path", "last", *rest[1:]]


def is_untrained(class_path: str) -> bool:
    """Return whether a class is an editor of this library that needs no training.

    Args:
        class_path: Dotted path, or bare name.
    """
    kind = getattr(editors, class_path.rpartition(".")[2], None)
    return isinstance(kind, type) and issubclass(kind, Editor) and not kind.needs_fit


def main(argv: Sequence[str]) -> int:
    """Run a LightningCLI verb: ``edit``, ``resume``, ``fit``, ``validate``, ``test``, ``predict``.

    Args:
        argv: The verb and its options.

    Returns:
        Exit status.

    Raises:
        LightningEditError: An error that the user can fix; the caller prints it.
    """
    arguments = _resume_arguments(argv[1:]) if argv[0] == "resume" else list(argv)
    check_yaml_arguments(arguments)
    check_names(arguments)
    arguments = name_save_dir(arguments)
    # Lightning's own help, with every option of its Trainer.
    arguments = ["--help" if word in ("--help_all", "--help-all") else word for word in arguments]
    silence_lightning(arguments[0])
    EditCLI(
        model_class=pl.LightningModule,
        datamodule_class=pl.LightningDataModule,
        trainer_class=EditTrainer,
        parser_class=RunParser,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        save_config_callback=SaveRunConfig,
        # Lightning would save it in the logger's folder, where nobody looks for it.
        save_config_kwargs={"overwrite": True, "save_to_log_dir": False},
        seed_everything_default=0,
        args=arguments,
    )
    return 0
