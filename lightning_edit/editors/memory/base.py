"""Memory editors: what they learn is kept beside the weights, and a prompt decides what is read.

Axis names: ``b`` -- rows; ``t`` -- positions; ``d_in``/``d_out`` -- width of a module's input and
output.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar, Generic, Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_edit.editors.base import Editor
from lightning_edit.editors.memory.neutral_texts import SAME_WORDS
from lightning_edit.editors.module_runtime import ModuleRuntime, PromptDecisionResponder
from lightning_edit.edits.delta import Delta
from lightning_edit.edits.in_force import HistoryChange
from lightning_edit.exceptions import ArchitectureError
from lightning_edit.inference.answer_rows import AnswerRows
from lightning_edit.inference.eval_mode import evaluating
from lightning_edit.inference.hooks import capture
from lightning_edit.inference.model_call import ModelCall
from lightning_edit.inference.model_responder import ModelResponder
from lightning_edit.inference.module_adapter import ModuleAdapter, attached
from lightning_edit.models.prompt_encoder import Ids, PromptEncoder
from lightning_edit.models.view import Stack
from lightning_edit.types import EditBatch

M = TypeVar("M", bound="Memory")
Projection = Literal["down", "up"]
"""MLP projection at which a memory sits: the one that writes the hidden state back, or the first
of those that read it."""


class Memory:
    """What a memory editor's edits in force come to, such as a codebook; built edit by edit."""

    def add(self, delta: Delta) -> None:
        """Add the next edit in force.

        Args:
            delta: The edit, which was committed after all those that were added before.
        """
        raise NotImplementedError


class MemoryEditor(Editor, Generic[M], family=True):
    """Family of editors whose edits are entries of a memory at modules of the model.

    A subclass makes an empty memory, turns it into module adapters, and computes what an edit adds.
    The memory follows from the edits in force alone: it is built by adding them in the order of
    their commits.
    """

    edits_weights: ClassVar[bool] = False
    batched: ClassVar[bool] = False

    def on_bind(self) -> None:
        """Prepare the runtime; nothing is put on the model before there is an edit."""
        self._runtime = ModuleRuntime(self.language_model, self._adapters)
        self._in_force: Sequence[Delta] = ()
        self._members: list[Delta] = []
        self._memory = self.empty_memory()

    def on_history(self, in_force: Sequence[Delta], change: HistoryChange) -> None:
        """Follow the list of edits in force, on top of which the next edit is learnt.

        Args:
            in_force: Deltas in force, a live view.
            change: What has just changed.
        """
        self._in_force = in_force

    @abstractmethod
    def empty_memory(self) -> M:
        """Return the memory without an edit."""

    @abstractmethod
    def adapters(self, memory: M) -> Mapping[str, ModuleAdapter]:
        """Return what acts on the model, by dotted module name.

        Args:
            memory: A memory with at least one edit. Copy what acts: the memory grows later on.
        """

    @abstractmethod
    def learn(self, part: EditBatch, memory: M) -> Delta:
        """Learn what an edit adds to a memory; gradients are on, the model has no memory on it.

        Args:
            part: One request, or a batch of them if the editor is ``batched``.
            memory: The memory of the edits in force, which must stay as it is.
        """

    def edit(self, batch: EditBatch) -> Delta:
        """Learn the entries of a batch, on top of those that are in force.

        Args:
            batch: The requests.

        Returns:
            A delta with state, which acts at run time.
        """
        parts = [batch] if self.batched else batch.split()
        earlier: list[Delta] = list(self._in_force)
        found: list[Delta] = []
        with torch.inference_mode(False), torch.enable_grad(), self.stage("search"), self._bare():
            for part in parts:
                found.append(self.learn(part, self.memory_of([*earlier, *found])))
        return found[0] if len(found) == 1 else self.join(batch, found)

    def join(self, batch: EditBatch, deltas: Sequence[Delta]) -> Delta:
        """Return one delta in the place of those of a batch's requests.

        Args:
            batch: The requests.
            deltas: One delta each, in order; their tensors are concatenated along the first axis,
                filled up with -1 where their other axes differ.
        """
        state = {name: _stack([one.state[name] for one in deltas]) for name in deltas[0].state}
        info = {name: [one.info[name] for one in deltas] for name in deltas[0].info}
        info |= self.chosen_info()  # once for all
        return Delta(batch.ids, state=state, info=info)

    def memory_of(self, deltas: Sequence[Delta]) -> M:
        """Return the memory of a list of edits in force.

        Args:
            deltas: The edits, in the order of their commits.
        """
        listed = list(deltas)
        known = self._members
        if len(listed) < len(known) or any(a is not b for a, b in zip(known, listed, strict=False)):
            known, self._memory = [], self.empty_memory()
        for delta in listed[len(known) :]:
            self._memory.add(delta)
        self._members = listed
        return self._memory

    def _adapters(self, in_force: Sequence[Delta]) -> Mapping[str, ModuleAdapter]:
        return self.adapters(self.memory_of(in_force))

    @contextmanager
    def _bare(self) -> Iterator[None]:
        """Run a block on the model without what is in force, in eval mode."""
        nothing = {name: Identity() for name in self._runtime.adapters}
        with ExitStack() as stack:
            grad = torch.is_grad_enabled()
            stack.enter_context(evaluating(self.language_model))
            stack.enter_context(torch.set_grad_enabled(grad))
            stack.enter_context(attached(self.language_model, nothing))
            yield

    def runtime(self) -> ModuleRuntime:
        """Return what attaches the memory to the model."""
        return self._runtime

    def responder(self, in_force: Sequence[Delta], batch_size: int = 64) -> ModelResponder:
        """Return what asks the model; every prompt decides once what it reads.

        Args:
            in_force: The edits in force.
            batch_size: Rows per forward pass.
        """
        return PromptDecisionResponder(self.language_model, self.prompts, batch_size)

    @property
    def input_device(self) -> torch.device:
        """Device of the model's input ids."""
        device: torch.device = self.view.embeddings.get_parameter("weight").device
        return device

    def site(self, block: int, projection: Projection, stack: Stack = "decoder") -> str:
        """Return the dotted name of a block's MLP projection.

        Args:
            block: Number of the block.
            projection: Which one.
            stack: Stack of the block.
        """
        found = self.view.block(block, stack)
        return found.mlp_down if projection == "down" else found.mlp_up[0]

    def require_context(self, block: int, module: str) -> None:
        """Refuse a place for keys of prompts' last tokens that reads nothing but the last token.

        Where a block computes attention and MLP from the same input, side by side, the MLP of the
        first block sees one token: all prompts that end with the same word have the same key.

        Args:
            block: Number of the block with the module.
            module: Dotted name of the MLP projection.

        Raises:
            ArchitectureError: If the module reads one token alone.
        """
        if block > 0 or self.view.is_encoder_decoder:
            return
        model = self.language_model
        # The same token behind two others.
        ids = torch.tensor([[1, 3], [2, 3]], device=self.input_device)
        with evaluating(model), capture(model, {module: "both"}, stop=True) as captured:
            model(input_ids=ids, use_cache=False)
        one, other = captured[f"{module}@output"][:, 1].float()
        if torch.allclose(one, other, rtol=1e-4, atol=1e-6 * float(one.norm())):
            raise ArchitectureError(
                f"{type(self).__name__} tells prompts apart by the state of their last token, but "
                f"in {type(model).__name__} attention and MLP of a block work side by side, so "
                f"that {module} has read the last token alone, and all prompts that end with the "
                "same word look alike there; choose a block of 1 or more"
            )


class Identity(ModuleAdapter):
    """Leaves a module's output as it is: stands where a memory must not act."""

    def act(self, hidden: Tensor, output: Tensor, call: ModelCall | None) -> Tensor:
        """Return the module's own output."""
        return output


class TrialAdapter(ModuleAdapter):
    """Changes a module's output while an entry is learnt, over rows that are known beforehand.

    Args:
        rows: The rows.
        change: Takes the module's input (b, t, d_in) and its own output (b, t, d_out); returns the
            new output.
        stack: Stack of the module.
    """

    def __init__(
        self,
        rows: AnswerRows,
        change: Callable[[Tensor, Tensor], Tensor],
        stack: Stack = "decoder",
    ) -> None:
        encoder = rows.encoder if stack == "encoder" else None
        self.shape = rows.ids.shape if encoder is None else encoder[0].shape
        self.change = change

    def act(self, hidden: Tensor, output: Tensor, call: ModelCall | None) -> Tensor:
        """Return the changed output."""
        # OPT flattens rows and positions to one axis before its MLP.
        new = self.change(hidden.view(*self.shape, -1), output.view(*self.shape, -1))
        return new.view(output.shape)


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    """Concatenate along the first axis; other axes are filled up with -1."""
    tail = [max(one.shape[axis] for one in tensors) for axis in range(1, tensors[0].dim())]
    filled: list[Any] = []
    for one in tensors:
        wide = one.new_full((one.shape[0], *tail), -1)
        wide[tuple(slice(size) for size in one.shape)] = one
        filled.append(wide)
    return torch.cat(filled)


def at_least_single(values: Tensor) -> Tensor:
    """Return values of a floating-point type in at least single precision.

    Args:
        values: Any values.
    """
    return values.to(torch.promote_types(values.dtype, torch.float32))


def neutral_keys(
    prompts: PromptEncoder, read: Callable[[Sequence[Ids]], Float[Tensor, "n d"]]
) -> Float[Tensor, "w s d"]:
    """Return keys of neutral texts: each wording with each subject, in the form of prompts.

    Args:
        prompts: The tokenizer, with the format of prompts.
        read: Returns the keys of prompts.
    """
    return torch.stack([read(prompts.prompts(group)) for group in SAME_WORDS])
