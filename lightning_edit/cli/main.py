"""Command-line entry point: dispatch of verbs, with lazy imports of torch and Lightning."""

import os
import signal
import sys
from collections.abc import Callable, Sequence

from lightning_edit.cli.check_arguments import closest
from lightning_edit.cli.signals import SIGNAL_STATUS, interruptible
from lightning_edit.exceptions import LightningEditError
from lightning_edit.functional.first_import import without_collection
from lightning_edit.functional.visible import visible

#: Verbs that need no Trainer, with their help texts.
LIGHT: dict[str, str] = {
    "data": "check FILE…: parse data files, count probes",
    "doctor": "MODEL: editable parts of a model, and its memory",
    "stats": "collect the key statistics that ROME and MEMIT need",
    "trace": "which states of a model carry facts: causal tracing",
    "detect": "which facts a model does not know (CaliNET's CKA)",
    "attribute-training": "which fine-tuning texts caused an answer (DDA, TracIn)",
    "report": "RUN…: tables of finished runs, and one HTML page of them",
    "attribute": "RUN: which edits moved a fact, and in which block",
    "benchmark": "GRID.yaml: methods × models × data × protocols, as tables",
    "mine": "RUN: which single edits made the model collapse, as data",
    "undo": "RUN --ids …: take edits back, or list those in force",
    "redo": "RUN --ids …: put undone edits into force again, with the old bits",
    "export": "RUN --format peft|merged|delta: ship the edits",
}
#: Studies of editors: they take an editor and data like ``edit``, so their help loads Lightning.
STUDIES: dict[str, str] = {
    "sweep": "try an editor at every layer of a model",
    "tune": "METHOD: search an editor's settings for your model",
    "tradeoff": "an edit's success against its harm, part of the way (1-LI)",
}
#: Verbs of LightningCLI, with their help texts.
HEAVY: dict[str, str] = {
    "edit": "write a stream of edits into a model and measure what else moved",
    "resume": "RUN: go on with an interrupted run of edits",
    "fit": "train an editor that needs training, such as MEND",
    "validate": "score a trained editor, or a model, on the validation split",
    "test": "score a trained editor, or a model, on the test split",
    "predict": "print the language model's answers to the prompts of the data",
}


_RESUME_HELP = """usage: lightning-edit resume RUN [options of `edit`]

Continue an interrupted run of edits: the weights and scores are those of a run that was never
interrupted. RUN is the folder that `lightning-edit edit` wrote; its config.yaml has the options.
`lightning-edit edit --help` lists the options, which can be overridden here.
"""


def _help() -> str:
    width = 2 + max(map(len, [*HEAVY, *STUDIES, *LIGHT]))
    lines = [
        "usage: lightning-edit VERB …",
        "",
        "Change what a language model knows, measure what else changed, ship the change.",
        "",
        "run:",
        *(f"  {verb:<{width}}{text}" for verb, text in HEAVY.items()),
        "",
        "choose layers and strength:",
        *(f"  {verb:<{width}}{text}" for verb, text in STUDIES.items()),
        "",
        "look and ship:",
        *(f"  {verb:<{width}}{text}" for verb, text in LIGHT.items()),
        "",
        "first steps:",
        "  lightning-edit edit --model ROME --data AtlasDataModule --data.limit 20 \\",
        "                      --protocol single",
        "  lightning-edit edit --model MEMIT --data JSONLDataModule --data.path facts.jsonl \\",
        "                      --lm path/to/model --protocol batch",
        "",
        "`lightning-edit VERB --help` lists every option of a verb; --version prints the version.",
    ]
    return "\n".join(lines) + "\n"


def _unknown_verb_message(verb: str) -> str:
    verbs = [*HEAVY, *STUDIES, *LIGHT]
    close = closest(verb, verbs)
    hint = f"did you mean {close}?" if close else f"choose from {', '.join(verbs)}"
    return f"lightning-edit: there is no verb {verb!r}; {hint}\n"


def _load_verb(verb: str) -> Callable[[Sequence[str]], int]:
    """Import a verb's module and return its ``main``; other verbs' modules are not imported."""
    match verb:
        case "data":
            from lightning_edit.cli.data import main
        case "doctor":
            from lightning_edit.cli.doctor import main
        case "stats":
            from lightning_edit.cli.stats import main
        case "trace":
            from lightning_edit.cli.trace import main
        case "detect":
            from lightning_edit.cli.detect import main
        case "attribute-training":
            from lightning_edit.cli.attribute_training import main
        case "report":
            from lightning_edit.cli.report import main
        case "attribute":
            from lightning_edit.cli.attribute import main
        case "benchmark":
            from lightning_edit.cli.benchmark import main
        case "mine":
            from lightning_edit.cli.hard_edits import main
        case "undo":
            from lightning_edit.cli.undo import main
        case "redo":
            from lightning_edit.cli.redo import main
        case "export":
            from lightning_edit.cli.export import main
        case "sweep":
            from lightning_edit.cli.sweep import main
        case "tune":
            from lightning_edit.cli.tune import main
        case "tradeoff":
            from lightning_edit.cli.tradeoff import main
        case _:
            raise ValueError(f"{verb!r} has no module")
    return main


def main(argv: Sequence[str] | None = None) -> int:
    """Run the ``lightning-edit`` command line.

    Args:
        argv: Arguments after the program name; ``None`` reads ``sys.argv``.

    Returns:
        Exit status: 0 on success, 2 after an error that the user can fix, 130 after Ctrl-C
        (SIGINT), 143 after SIGTERM.
    """
    with interruptible() as received:
        try:
            status = _main(argv)
        except KeyboardInterrupt:
            if not received:  # raised by hand, not by a signal
                received.append(signal.SIGINT)
            sys.stderr.write("Interrupted.\n")
            status = 1
    return SIGNAL_STATUS + received[0] if received else status


def _main(argv: Sequence[str] | None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    # Idle OpenMP threads spin by default and slow down other processes on a shared core.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        sys.stdout.write(_help())
        return 0
    if arguments[0] == "--version":
        from importlib.metadata import version

        sys.stdout.write(f"lightning-edit {version('lightning-edit')}\n")
        return 0
    verb, rest = arguments[0], arguments[1:]
    try:
        if verb in LIGHT or verb in STUDIES:
            with without_collection():
                run = _load_verb(verb)
            return run(rest)
        if verb == "resume" and rest[:1] in (["-h"], ["--help"]):
            sys.stdout.write(_RESUME_HELP)
            return 0
        if verb in HEAVY and rest[:1] in (["-h"], ["--help"]):
            from lightning_edit.cli.run_help import help_text

            sys.stdout.write(help_text(verb))
            return 0
        if verb in HEAVY:
            with without_collection():
                from lightning_edit.cli.lightning import main as lightning
                from lightning_edit.distributed.leaving import leave_at_exit

            leave_at_exit()
            return lightning(arguments)
    except LightningEditError as error:
        sys.stderr.write(visible(f"lightning-edit {verb}: {error}\n"))
        return 2
    except SystemExit as stop:
        # argparse and jsonargparse raise SystemExit themselves, after --help or a usage error.
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 2
    except BrokenPipeError:
        # The reader of the output has closed the pipe, as `| head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        # A file that a verb reads or writes without a message of its own, such as --out.
        if error.filename is None or error.strerror is None:
            raise
        sys.stderr.write(
            visible(
                f"lightning-edit {verb}: {error.filename}: {error.strerror}; check the path and "
                "its permissions\n"
            )
        )
        return 2
    sys.stderr.write(visible(_unknown_verb_message(verb)))
    return 2
