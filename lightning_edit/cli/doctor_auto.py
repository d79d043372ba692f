"""Table of settings by rule (``auto``) for ``lightning-edit doctor``: what they are, and why."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from rich.table import Table

from lightning_edit.cli.doctor_findings import empty_table
from lightning_edit.editors.gradient.base import LEARNT, MARGIN, MOST_STEPS, STEPS_IN_BOX
from lightning_edit.editors.gradient.ultraedit import REACHES
from lightning_edit.editors.locate.search_objective import STEPS_TO_BOUND
from lightning_edit.models.view import ModelView

_BATCH, _BINDING = "chosen for each batch", "read from the weights when bound"


class Rule(NamedTuple):
    """What ``auto`` is for one setting.

    Args:
        means: What the value is to achieve.
        here: The value on a model, from its structure alone; else when it is chosen.
    """

    means: str
    here: str | Callable[[ModelView], float] = _BATCH


#: By setting; where methods differ, by the class of a method or of its family, and setting.
#: docs/settings.md has the reasons.
RULES: dict[str, Rule] = {
    "moment_weight": Rule(
        "nine tenths of a typical key's residual are written", lambda v: v.intermediate_size / 9
    ),
    "D4S.scale": Rule("the layers together write the searched vector once", "by their number"),
    "norm_weight": Rule("as moment_weight, for keys in the null space", _BINDING),
    "null_threshold": Rule("directions with three tenths of a key's squared norm", _BINDING),
    "clamp": Rule("0.75; doubled up to 6 where it keeps an answer away", "chosen for each edit"),
    **dict.fromkeys(
        ("ROME.clamp", "RROME.clamp"),
        Rule("3; doubled to 6 where it keeps an answer away", "chosen for each edit"),
    ),
    "lr": Rule("the first step takes a share of the loss"),
    "WISE.lr": Rule("a step adds a share of the projection's output", "once a model"),
    "WISE.norm_constraint": Rule("the projection's output over its input, in norm", "once a model"),
    "MEMOIR.lr": Rule("the square of the projection's output over its input", "once a model"),
    "GRACE.lr": Rule("the size of an entry of the projection's output", "once a model"),
    "weight_decay": Rule("0.01 nats for a vector as long as the state", "chosen for each edit"),
    "steps": Rule("until every request is learnt", lambda v: MOST_STEPS),
    "norm_constraint": Rule(f"{STEPS_IN_BOX:g} steps of the lr that is noted"),
    "eta": Rule(f"of each request the smallest of {len(REACHES)} steps that writes its answer"),
    "radius": Rule("a share of the distance between prompts about two subjects", _BINDING),
    "threshold": Rule(
        "half way from prompts about two subjects to the prompt itself", "once a model"
    ),
    "add": Rule("8, doubled until the new answer is the first choice", "chosen for each edit"),
    "alpha": Rule("the smallest that writes what the whole update writes"),
    "ENCORE.norm_weight": Rule("a ninth of the mean eigenvalue of λC", _BINDING),
    "LocateThenEdit.lr": Rule(
        f"{STEPS_TO_BOUND:g} steps lead to the bound", "chosen for each edit"
    ),
    "GradientEditor.lr": Rule("each step takes a share of the loss, and changes other text least"),
    "GradientEditor.threshold": Rule(
        "a request ends when its answer is the first choice by so many nats", lambda v: MARGIN
    ),
    # Tokens that share a position cannot all be the first choice.
    **dict.fromkeys(
        ("FT.threshold", "FTL.threshold"),
        Rule("each request ends at so many nats a token above its least loss", lambda v: LEARNT),
    ),
}
#: Of a setting that no rule here is about, as an editor from elsewhere may have.
_UNKNOWN = Rule("see the page of the method", "see there")


def auto_settings(editor: type[Any]) -> list[str]:
    """Return the settings of an editor that are ``auto`` by default, for a number.

    Args:
        editor: A concrete editor class.
    """
    found: dict[str, Any] = {}
    for cls in reversed(editor.__mro__):
        if "__init__" in vars(cls):
            own = inspect.signature(vars(cls)["__init__"]).parameters
            takes_more = any(one.kind is one.VAR_KEYWORD for one in own.values())
            found = (found if takes_more else {}) | {name: one.default for name, one in own.items()}
    # Key statistics are a file or one of the cache, no number.
    return [name for name, value in found.items() if value == "auto" and name != "statistics"]


def rule_of(editor: type[Any], setting: str) -> Rule:
    """Return the rule of a setting.

    Args:
        editor: A concrete editor class.
        setting: Name of the argument.
    """
    named = [*(f"{cls.__name__}.{setting}" for cls in editor.__mro__), setting]
    return next((RULES[name] for name in named if name in RULES), _UNKNOWN)


def auto_table(view: ModelView, editors: Sequence[type[Any]]) -> Table:
    """Tabulate the settings by rule of each editor that has some, a line a method.

    Args:
        view: The model's structure.
        editors: Concrete editor classes.
    """
    table = empty_table("Settings by rule (auto)", "method", "here", "rule")
    kind = "encoder-decoder" if view.is_encoder_decoder else "decoder-only"
    for cls in editors:
        listed = list(_shown(cls, view)) if kind in cls.architectures else []
        if listed:
            here, rules = zip(*listed, strict=True)
            table.add_row(cls.__name__, "; ".join(here), "; ".join(rules))
    return table


def _shown(cls: type[Any], view: ModelView) -> Iterator[tuple[str, str]]:
    """Yield each setting with its value or when it is chosen, and with its rule."""
    host = getattr(cls, "default_host", None)
    if host is not None and auto_settings(host):
        yield f"host {host.__name__}: as there", "those of the host"
    for name in auto_settings(cls):
        rule = rule_of(cls, name)
        here = f": {rule.here}" if isinstance(rule.here, str) else f" = {rule.here(view):.4g}"
        yield name + here, f"{name}: {rule.means}"
