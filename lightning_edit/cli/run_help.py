"""Help of the verbs that run a Trainer, read from source files, without torch and Lightning.

The parser of Lightning prints every option of its Trainer, and needs seconds to be built; it is one
option away (``--help_all``).
"""

import ast
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
_WIDTH = 79
_TRAINS = "fit"

#: What each verb does, and its usual command.
_VERBS: dict[str, tuple[str, str]] = {
    "edit": (
        "Write a stream of edits into a language model, and measure what else moved.",
        "lightning-edit edit --model MEMIT --data JSONLDataModule \\\n"
        "    --data.path facts.jsonl --lm path/to/model --protocol batch --run runs/x",
    ),
    "fit": (
        "Train an editor that needs training, or any LightningModule of yours.",
        "lightning-edit fit --config configs/train/mend_atlas.yaml --run runs/mend",
    ),
    "validate": (
        "Score a trained editor, or a language model by callbacks, on the `val` split.",
        "lightning-edit validate --config runs/mend/config.yaml --ckpt_path best",
    ),
    "test": (
        "Score a trained editor, or a language model by callbacks, on the `test` split.",
        "lightning-edit test --config runs/mend/config.yaml --ckpt_path best",
    ),
    "predict": (
        "Print a language model's answers to the prompts of the data, one JSON object a line.",
        "lightning-edit predict --model FT --data AtlasDataModule --data.limit 5",
    ),
}

_COMMON = (
    ("--model CLASS", "the editor; its arguments as --model.layers '[5]'"),
    ("--data CLASS", "the facts; its arguments as --data.limit 20, --data.separator ' -> '"),
    (
        "--lm NAME",
        "the language model: atlas (default), atlas-t5, a folder of a saved model, or a hub name",
    ),
    ("--lm_dtype TYPE", "type of its weights: float32 (default), bfloat16, float16, float64"),
    ("--lm_bos true", "put BOS before every text, for models that were trained so"),
    (
        "--lm_chat true|both",
        "ask through the model's chat template: prompts are the user's turn; both: write plain "
        "text as well",
    ),
    ("--lm_system TEXT", "system message of the chat"),
    ("--lm_chat_options MAP", "variables of the template, such as '{enable_thinking: false}'"),
    ("--lm_end_answers true", "write answers with their end, so that the model stops there"),
    ("--lm_revision REV", "branch, tag or commit of a hub model"),
    ("--run FOLDER", "folder of everything that is written; default: runs/<time>-<class>"),
    ("--config FILE", "YAML with any of these options; several are stacked, the last one counts"),
    ("--seed_everything N", "seed of everything random; default: 0"),
)
_TRAINER = (
    ("--trainer.callbacks+=CLASS", "what is measured on the way; its arguments as "
     "--trainer.callbacks.limit=50"),
    ("--trainer.logger CLASS", "CSVLogger, TensorBoardLogger, WandbLogger, …; scores are logged by "
     "number of edits or steps"),
    ("--trainer.accelerator NAME", "cpu, gpu or auto (default)"),
)  # fmt: skip
_MORE = (
    ("--model.help CLASS", "arguments of an editor; likewise --data.help CLASS"),
    ("--print_config", "print the configuration with all defaults"),
    ("--help_all", "every option, with all of Lightning's Trainer"),
)


@dataclass(frozen=True)
class ClassSource:
    """A class as its source file shows it.

    Args:
        name: Its name.
        bases: Names of its bases.
        summary: First line of its docstring.
        settings: Class attributes that are constants, by name.
        is_abstract: Whether it is a family, or has an abstract method of its own.
    """

    name: str
    bases: tuple[str, ...]
    summary: str
    settings: dict[str, object]
    is_abstract: bool


def class_sources(room: str) -> dict[str, ClassSource]:
    """Read every class of a room from its source files.

    Args:
        room: Folder in the package, such as ``editors``.
    """
    found: dict[str, ClassSource] = {}
    for path in sorted((_PACKAGE / room).rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                found[node.name] = _class_source(node)
    return found


def _class_source(node: ast.ClassDef) -> ClassSource:
    bases = tuple(base.id for base in node.bases if isinstance(base, ast.Name))
    settings: dict[str, object] = {
        part.target.id: part.value.value
        for part in node.body
        if isinstance(part, ast.AnnAssign)
        and isinstance(part.target, ast.Name)
        and isinstance(part.value, ast.Constant)
    }
    settings |= {
        target.id: part.value.value
        for part in node.body
        if isinstance(part, ast.Assign) and isinstance(part.value, ast.Constant)
        for target in part.targets
        if isinstance(target, ast.Name)
    }
    family = any(keyword.arg == "family" for keyword in node.keywords)
    abstract = any(
        isinstance(mark, ast.Name) and mark.id == "abstractmethod"
        for part in node.body
        if isinstance(part, ast.FunctionDef)
        for mark in part.decorator_list
    )
    return ClassSource(
        node.name,
        bases,
        (ast.get_docstring(node) or "").partition("\n")[0],
        settings,
        family
        or abstract
        or "ABC" in [base.id for base in node.bases if isinstance(base, ast.Name)],
    )


def public_names(room: str) -> list[str]:
    """Read the names in ``__all__`` of a room, or the keys of its lazy table, from its source.

    Args:
        room: Folder in the package.
    """
    for node in ast.parse((_PACKAGE / room / "__init__.py").read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Name):
            continue
        if node.targets[0].id == "__all__" and isinstance(node.value, ast.List):
            return [str(ast.literal_eval(one)) for one in node.value.elts]
        if node.targets[0].id == "_HOME" and isinstance(node.value, ast.Dict):
            return [str(ast.literal_eval(key)) for key in node.value.keys if key is not None]
    raise ValueError(f"{room} has no list of public names")


def choices(room: str, verb: str) -> list[ClassSource]:
    """Return the classes of a room that a user can choose for a verb.

    Args:
        room: ``editors``, ``datamodules`` or ``callbacks``.
        verb: The verb.
    """
    sources = class_sources(room)
    listed = [sources[name] for name in sorted(public_names(room)) if name in sources]
    if room == "callbacks":
        listed = [one for one in listed if "MeasurementCallback" in _ancestors(one, sources)]
    return [
        one
        for one in listed
        if not one.is_abstract
        and (room != "editors" or verb != _TRAINS or _setting(one, "needs_fit", sources))
    ]


def _ancestors(one: ClassSource, sources: dict[str, ClassSource]) -> Iterator[str]:
    for base in one.bases:
        yield base
        if base in sources:
            yield from _ancestors(sources[base], sources)


def _setting(one: ClassSource, name: str, sources: dict[str, ClassSource]) -> object:
    for kind in (one.name, *_ancestors(one, sources)):
        if kind in sources and name in sources[kind].settings:
            return sources[kind].settings[name]
    return None


def method_options(verb: str) -> list[tuple[str, str]]:
    """Return the options of ``edit`` with their help, from the docstring of ``EditTrainer.edit``.

    Args:
        verb: The verb; the others have ``--ckpt_path`` only.
    """
    if verb != "edit":
        text = "a checkpoint: its path; best or last, as found in the folder of --run"
        return [("--ckpt_path PATH", text if verb != "fit" else "go on from a checkpoint, or last")]
    source = (_PACKAGE / "session" / "trainer.py").read_text(encoding="utf-8")
    method = next(
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef) and node.name == "edit"
    )
    described = (ast.get_docstring(method) or "").partition("Args:\n")[2].partition("\n\n")[0]
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", described, re.M)
    left_out = {"model", "datamodule", "seed", "run"}
    return [
        (f"--{name} {name.upper()}", " ".join(text.split()))
        for name, text in entries
        if name not in left_out
    ]


def help_text(verb: str) -> str:
    """Return the help of a verb.

    Args:
        verb: A verb that runs a Trainer.
    """
    what, command = _VERBS[verb]
    parts = [
        f"usage: lightning-edit {verb} --model CLASS --data CLASS [options]",
        "",
        *textwrap.wrap(what, _WIDTH),
        "",
        *(f"  {line}" for line in command.splitlines()),
        "",
        "Options:",
        *_table([*_COMMON[:2], *method_options(verb), *_COMMON[2:]]),
        "",
        "Of Lightning's Trainer, among others:",
        *_table(_TRAINER),
        "",
        "More:",
        *_table(_MORE),
    ]
    for title, room in (
        ("Editors (--model):", "editors"),
        ("Data (--data):", "datamodules"),
        ("Callbacks (--trainer.callbacks+=):", "callbacks"),
    ):
        rows = [(one.name, one.summary.rstrip(".")) for one in choices(room, verb)]
        parts += ["", title, *_table(rows, 24)]
    parts += ["", "A class of your own is given by its dotted path."]
    return "\n".join(parts) + "\n"


def _table(rows: Sequence[tuple[str, str]], width: int = 28) -> Iterator[str]:
    for name, text in rows:
        lines = textwrap.wrap(text, _WIDTH - width - 2)
        if len(name) >= width:
            lines.insert(0, "")
        for number, line in enumerate(lines):
            yield f"  {'' if number else name:<{width}}{line}".rstrip()
