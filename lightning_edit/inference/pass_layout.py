"""Layout of forward passes (what texts share, and how), chosen once per run and recorded.

The layouts give the same results except for the last bits. If the layout were chosen at every
pass, a run would depend on what the process did before, so it is chosen before the first pass,
recorded in the run folder, and kept until the run ends.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import nn

from lightning_edit.exceptions import PassLayoutError
from lightning_edit.inference.answer_pass import PassBackend
from lightning_edit.inference.encoded_prompts import EncodedPrompts
from lightning_edit.inference.model_call import calls_of
from lightning_edit.inference.onednn import large_layers, multiplied_by_onednn
from lightning_edit.inference.packed.backend import packable
from lightning_edit.inference.pass_backends import (
    EncoderDecoder,
    PaddedRows,
    PlainRows,
    PrefixTree,
)

Kind = Literal["prefix_tree", "padded", "plain", "encoded_once"]
Products = Literal["torch", "onednn"]
#: Module of the hooks with which transformers records hidden states and attention. It leaves them
#: on the model after the first call that asks for them; they do nothing in any other call.
_RECORDERS = "transformers.utils.output_capturing"


@dataclass(frozen=True)
class PassLayout:
    """Forward-pass layout of one run: prefix tree, padded rows, or prompts that are encoded once.

    Args:
        kind: ``prefix_tree``: shared prefixes are computed once, in one row with a tree attention
            mask. ``padded``: padded rows, where a text that is the beginning of another is read in
            it. ``plain``: padded rows that share nothing, for editors that decide once a prompt.
            ``encoded_once``: of two stacks the encoder reads a prompt once for all its answers and
            its continuation.
        after_answer: Tokens that usually follow an answer (a full stop). A teacher-forced pass also
            predicts the token after them, so that generation starts later; empty: no guess.
        products: What multiplies large linear layers of a float32 model on a CPU: PyTorch's own
            product, or oneDNN (:mod:`~lightning_edit.inference.onednn`).
        long_prefixes: Whether a prefix of hundreds of tokens that many texts share (facts or
            demonstrations in the context, a system prompt) is computed once for all of them: in
            larger prefix trees, and before generation by a decoder without hooks
            (:mod:`~lightning_edit.inference.prefix_cache`).

    Example:
        >>> PassLayout.from_dict({"kind": "padded", "after_answer": [13]}).after_answer
        (13,)
    """

    kind: Kind
    after_answer: tuple[int, ...] = ()
    products: Products = "torch"
    long_prefixes: bool = False

    @classmethod
    def choose(cls, model: nn.Module, share: bool = True, fastest: bool = False) -> "PassLayout":
        """Choose the layout that a model supports in its present state, hooks included.

        Existing hooks may expect one row per text, so a model with hooks gets padded rows, as does
        a decoder-only one whose attention cannot be replaced.

        Args:
            model: A Hugging Face language model.
            share: Whether prompts may share what they have in common; not if edits on the model
                decide once a prompt.
            fastest: Whether large layers may be multiplied by oneDNN, for a caller that keeps this
                layout as long as its scores are compared.
        """
        products: Products = "onednn" if fastest and large_layers(model) else "torch"
        kind = _choose_kind(model, share)
        long_prefixes = kind != "plain" and not hooked_modules(model)
        return cls(kind, products=products, long_prefixes=long_prefixes)

    def require(self, model: nn.Module) -> None:
        """Check that a model can still run in the layout that was chosen for it.

        Args:
            model: The model that is about to run.

        Raises:
            PassLayoutError: If it got hooks or another attention implementation since then, or
                edits that decide once a prompt, or is a model of another kind.
        """
        config: Any = model.config
        if self.kind == "encoded_once" and not config.is_encoder_decoder:
            raise PassLayoutError(
                f"this run's passes are of a model of two stacks, and {type(model).__name__} has "
                "one; give the model that the run began with, or begin a new one"
            )
        if self.kind != "plain" and calls_of(model) is not None:
            raise PassLayoutError(
                f"{type(model).__name__} got edits that decide once a prompt after this run had "
                "begun with passes that prompts share, which would mix their decisions; edit "
                "before the run begins (before the Trainer or Scorer), or ask through "
                "editor.responder(...)"
            )
        if self.kind in ("padded", "plain"):
            return
        if self.kind == "prefix_tree" and not packable(model):
            raise PassLayoutError(
                f"{type(model).__name__} has another attention implementation than when this run "
                "began; another layout would change the last digits of scores, so set the "
                "attention implementation before the run begins"
            )
        if hooked := hooked_modules(model):
            listed = ", ".join(name or type(model).__name__ for name in hooked[:3])
            raise PassLayoutError(
                f"{listed}{' and more' if len(hooked) > 3 else ''} got a forward hook after this "
                "run had begun without hooks; another layout would change the last digits of "
                "scores, so register hooks before the run begins (before the Trainer, Scorer or "
                "edit is started), or remove them before the model is scored"
            )

    def backend(self, model: nn.Module, encoded: EncodedPrompts | None = None) -> PassBackend:
        """Return the backend that lays out rows so.

        Args:
            model: The language model; two stacks have a backend of their own.
            encoded: Prompts of the layout ``encoded_once`` that are shared with other calls.
        """
        config: Any = model.config
        if config.is_encoder_decoder:
            return EncoderDecoder(self.kind == "encoded_once", encoded)
        backends: dict[Kind, PassBackend] = {
            "prefix_tree": PrefixTree(self.long_prefixes),
            "padded": PaddedRows(),
            "plain": PlainRows(),
        }
        return backends[self.kind]

    def require_products(self, model: nn.Module) -> None:
        """Check that a run can go on with the products that it began with.

        Args:
            model: The model that the run goes on with.

        Raises:
            PassLayoutError: If oneDNN multiplied its layers before, and does not now.
        """
        if self.products == "onednn" and not large_layers(model):
            raise PassLayoutError(
                f"this run began with products by oneDNN, and no layer of {type(model).__name__} "
                "runs so here: it needs float32 weights on a CPU, no compiled parts and a PyTorch "
                "with oneDNN. Other products would change the last digits of scores; go on as the "
                "run began, or begin a new one"
            )

    def multiplied(self, model: nn.Module) -> AbstractContextManager[None]:
        """Return the context in which the model's large layers are multiplied as in all the run.

        Args:
            model: The language model.
        """
        return multiplied_by_onednn(model) if self.products == "onednn" else nullcontext()

    def to_dict(self) -> dict[str, Any]:
        """Serialise the layout to plain containers, for a run folder or a checkpoint."""
        return {
            "kind": self.kind,
            "after_answer": list(self.after_answer),
            "products": self.products,
            "long_prefixes": self.long_prefixes,
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> "PassLayout":
        """Restore a layout from the output of :meth:`to_dict`.

        Args:
            state: Plain containers; runs begun before `products` was recorded used PyTorch's, and
                those begun before `long_prefixes` was recorded had small prefix trees.

        Raises:
            ValueError: If ``state`` is not such an output.
        """
        kinds: tuple[Kind, ...] = get_args(Kind)
        kind = next((kind for kind in kinds if kind == state.get("kind")), None)
        ways: tuple[Products, ...] = get_args(Products)
        products = next((way for way in ways if way == state.get("products", "torch")), None)
        tokens = state.get("after_answer")
        known = isinstance(tokens, list) and all(type(token) is int for token in tokens)
        long_prefixes = state.get("long_prefixes", False)
        known = known and isinstance(long_prefixes, bool)
        if kind is None or products is None or not known:
            raise ValueError(
                f"expected `kind` as one of {', '.join(kinds)}, `after_answer` as a list of "
                f"token ids, `products` as one of {', '.join(ways)} and `long_prefixes` as true or "
                f"false, got {dict(state)}"
            )
        return cls(kind, tuple(tokens or ()), products, long_prefixes)


def _choose_kind(model: nn.Module, share: bool) -> Kind:
    config: Any = model.config
    if not share or calls_of(model) is not None:
        return "plain"
    if hooked_modules(model):
        return "padded"
    if config.is_encoder_decoder:
        return "encoded_once"
    return "prefix_tree" if packable(model) else "padded"


def hooked_modules(model: nn.Module) -> list[str]:
    """Return the names of modules with forward hooks, without transformers' own recorders.

    Args:
        model: The model; its own name is the empty string.
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
