"""Which layout forward passes over prompts and answers have: chosen once a run, and kept.

Two layouts of the same texts, a prefix tree and padded rows, give the same numbers but not the same
last bits. A run that chose anew at every pass would depend on what the process did before, so the
choice is made before the first pass, is recorded in the run folder, and holds until the run ends.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import nn

from lightning_edit.exceptions import PassLayoutError
from lightning_edit.inference.packed.backend import packable

Kind = Literal["prefix_tree", "padded"]
#: Home of the hooks with which transformers records hidden states and attention. It leaves them on
#: the model after the first call that asks for them; they do nothing in any other call.
_RECORDERS = "transformers.utils.output_capturing"


@dataclass(frozen=True)
class PassLayout:
    """How texts are laid out in the forward passes of one run.

    Args:
        kind: ``prefix_tree``: what texts begin with is computed once, in one row with an attention
            mask that follows the tree. ``padded``: a row a text, padded on the right.
        after_answer: Tokens that usually follow an answer (a full stop). A teacher-forced pass
            reads one token behind them, so that a continuation begins later; empty: nothing is
            guessed.

    Example:
        >>> PassLayout.from_dict({"kind": "padded", "after_answer": [13]}).after_answer
        (13,)
    """

    kind: Kind
    after_answer: tuple[int, ...] = ()

    @classmethod
    def choose(cls, model: nn.Module) -> "PassLayout":
        """Choose a layout for a model as it is now, hooks included.

        Whoever has hooked into a model may count on a row for each text, so such a model gets
        padded rows, as does one whose attention cannot be replaced.

        Args:
            model: A Hugging Face language model.
        """
        config: Any = model.config
        plain = not config.is_encoder_decoder and packable(model) and not hooked_modules(model)
        return cls("prefix_tree" if plain else "padded")

    def require(self, model: nn.Module) -> None:
        """Refuse a model that can no longer run in a prefix tree that was chosen for it.

        Args:
            model: The model that is about to run.

        Raises:
            PassLayoutError: If it has hooks, or an attention function, that it did not have.
        """
        if self.kind != "prefix_tree":
            return
        if not packable(model):
            raise PassLayoutError(
                f"{type(model).__name__} has another attention implementation than when this run "
                "began; other passes would give scores other last digits, so choose it before the "
                "run begins"
            )
        if hooked := hooked_modules(model):
            listed = ", ".join(name or type(model).__name__ for name in hooked[:3])
            raise PassLayoutError(
                f"{listed}{' and more' if len(hooked) > 3 else ''} got a forward hook after this "
                "run had begun without hooks; other passes would give scores other last digits, so "
                "register hooks before the run begins (before the Trainer, Scorer or edit is "
                "started), or remove them before the model is scored"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers, for a run folder or a checkpoint."""
        return {"kind": self.kind, "after_answer": list(self.after_answer)}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> "PassLayout":
        """Read what :meth:`to_dict` wrote.

        Args:
            state: Plain containers.

        Raises:
            ValueError: If it is something else.
        """
        kinds: tuple[Kind, ...] = get_args(Kind)
        kind = next((kind for kind in kinds if kind == state.get("kind")), None)
        tokens = state.get("after_answer")
        known = isinstance(tokens, list) and all(type(token) is int for token in tokens)
        if kind is None or not known:
            raise ValueError(
                f"expected `kind` as one of {', '.join(kinds)} and `after_answer` as a list of "
                f"token ids, got {dict(state)}"
            )
        return cls(kind, tuple(tokens or ()))


def hooked_modules(model: nn.Module) -> list[str]:
    """Return the names of modules with forward hooks, without transformers' own recorders.

    Args:
        model: The model; its own name is the empty text.
    """
    return [
        name
        for name, module in model.named_modules()
        if any(
            getattr(hook, "__module__", None) != _RECORDERS
            for hooks in (module._forward_hooks, module._forward_pre_hooks)
            for hook in hooks.values()
        )
    ]
