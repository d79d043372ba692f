"""Corrupt a subject, restore one clean state, and see how much of the answer comes back.

Everything below the lowest restored block is the same in every run on one fact, so it is computed
once: a pass begins at that block, with one row a restored token and noise sample.

Axis names: ``s`` -- noise samples; ``t`` -- tokens of the text; ``r`` -- rows of one pass: a
restored token and a noise sample each; ``d`` -- hidden width; ``p`` -- restored tokens: the
subject's first and all after it (a token before it has a clean state in every run); ``l`` --
layers; ``v`` -- words.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lightning_edit.analysis.tracing.facts import Fact
from lightning_edit.exceptions import ArchitectureError, DataError
from lightning_edit.functional.tokens import encode_pair, subject_last_index
from lightning_edit.functional.tracing import indirect_effect, noise, window
from lightning_edit.inference.hooks import (
    Side,
    capture,
    first_tensor,
    replace_output,
    returning,
    returns_tuples,
    select_head_positions,
)
from lightning_edit.models.view import ModelView

Kind = Literal["hidden", "mlp", "attention"]
KINDS: tuple[Kind, ...] = ("hidden", "mlp", "attention")


@dataclass(frozen=True)
class Prepared:
    """A fact in tokens.

    Args:
        ids: Tokens of the prompt.
        subject: Positions of the subject's tokens.
        answer: First token of the answer.
    """

    ids: tuple[int, ...]
    subject: range
    answer: int

    @classmethod
    def of(cls, tokenizer: Any, fact: Fact) -> "Prepared":
        """Tokenise a fact.

        Args:
            tokenizer: A fast tokenizer.
            fact: The fact.

        Raises:
            DataError: If its answer or its subject has no token.
        """
        try:
            ids, answer = encode_pair(tokenizer, fact.prompt, fact.answer)
            first = subject_last_index(tokenizer, fact.prompt, fact.start + 1)
            last = subject_last_index(tokenizer, fact.prompt, fact.end)
        except ValueError as error:
            raise DataError(f"the fact {fact.prompt!r} cannot be traced: {error}") from error
        if last >= len(ids):
            raise DataError(
                f"the fact {fact.prompt!r} cannot be traced: its subject {fact.subject!r} and its "
                "answer share a token; put a word between them"
            )
        return cls(tuple(ids), range(first, last + 1), answer[0])


@dataclass(frozen=True)
class Effects:
    """What tracing one fact gave.

    Args:
        clean: Probability of the answer.
        corrupted: The same with noise on the subject, averaged over the samples.
        indirect: By kind of state, the indirect effect of restoring it at a token and layer.
    """

    clean: float
    corrupted: float
    indirect: Mapping[Kind, Float[Tensor, "p l"]]


@dataclass(frozen=True)
class Tracer:
    """Traces facts through one model.

    Args:
        view: The model's structure.
        scale: Standard deviation of the noise.
        samples: Corrupted runs a fact.
        width: Blocks in a window of restored MLPs or attentions.
        kinds: States to restore.
        rows_per_pass: Most rows in one pass; bounds memory, changes no result.
        seed: Seed of the noise; the same for every fact, so that results do not depend on the
            facts before it.

    Raises:
        ArchitectureError: If the model is an encoder-decoder.
    """

    view: ModelView
    scale: float
    samples: int = 10
    width: int = 1
    kinds: Sequence[Kind] = KINDS
    rows_per_pass: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        if self.view.is_encoder_decoder:
            raise ArchitectureError(
                f"{type(self.view.model).__name__} is an encoder-decoder: its encoder reads the "
                "whole prompt in both directions, so no state belongs to the tokens before it "
                "alone; causal tracing needs a decoder-only model"
            )

    @torch.no_grad()
    def predicted(self, fact: Prepared) -> int:
        """Return the token that the model says next.

        Args:
            fact: The fact.
        """
        ids = self._ids(fact, 1)
        return int(self._logits(ids).argmax())

    @torch.no_grad()
    def trace(self, fact: Prepared) -> Effects:
        """Trace one fact.

        Args:
            fact: A fact that the model predicts.
        """
        states = self._clean(fact)
        runs = self._corrupted(fact)
        indirect: dict[Kind, Tensor] = {}
        for kind in self.kinds:
            columns = [
                self._restored(fact, kind, layer, states, runs)
                for layer in range(self.view.num_blocks)
            ]
            indirect[kind] = indirect_effect(torch.stack(columns, 1), runs.probability)
        return Effects(states.probability.item(), runs.probability.item(), indirect)

    # ------------------------------------------------------------------------------------ passes

    def _clean(self, fact: Prepared) -> "_Clean":
        modules = {kind: [self._module(kind, layer) for layer in self._blocks] for kind in KINDS}
        wanted: dict[str, Side] = {name: "output" for kind in self.kinds for name in modules[kind]}
        ids = self._ids(fact, 1)
        with capture(self.view.model, wanted) as seen:
            probability = self._probabilities(ids, fact.answer)
        kept = {name: states[0] for name, states in seen.items()}
        return _Clean(probability[0], kept)

    def _corrupted(self, fact: Prepared) -> "_Corrupted":
        drawn = noise(self.samples, len(fact.subject), self.view.hidden_size, self.scale, self.seed)
        embedded: list[Tensor] = []

        def add(output: Tensor) -> Tensor:
            noisy = output.clone()
            place = slice(fact.subject.start, fact.subject.stop)
            noisy[:, place] += drawn.to(noisy.device, noisy.dtype)
            embedded.append(noisy)
            return noisy

        wanted: dict[str, Side] = {block.name: "output" for block in self.view.blocks}
        ids = self._ids(fact, self.samples)
        with (
            replace_output(self.view.embeddings, add),
            returns_tuples(self.view.blocks[0].module) as tuples,
            capture(self.view.model, wanted) as seen,
        ):
            probabilities = self._probabilities(ids, fact.answer)
        hidden = [seen[block.name] for block in self.view.blocks]
        return _Corrupted(probabilities.mean(), embedded[0], hidden, tuples[0])

    def _restored(
        self, fact: Prepared, kind: Kind, layer: int, clean: "_Clean", runs: "_Corrupted"
    ) -> Float[Tensor, " p"]:
        """Return the answer's probability with one kind of state restored around a layer."""
        positions = range(fact.subject.start, len(fact.ids))
        found = []
        tokens = max(1, self.rows_per_pass // self.samples)
        for start in range(0, len(positions), tokens):
            part = positions[start : start + tokens]
            rows = torch.tensor(part, device=runs.embedded.device).repeat_interleave(self.samples)
            ids = self._ids(fact, len(rows))
            with ExitStack() as stack:
                if kind == "hidden":
                    stack.enter_context(self._from_restored(runs, clean, layer, rows))
                else:
                    layers = window(layer, self.width, self.view.num_blocks)
                    stack.enter_context(self._from_block(runs, layers.start, len(part)))
                    for one in layers:
                        name = self._module(kind, one)
                        put = _putting(clean.states[name], rows)
                        module = self.view.model.get_submodule(name)
                        stack.enter_context(replace_output(module, put, within=self.view.model))
                probabilities = self._probabilities(ids, fact.answer)
            found.append(probabilities.view(len(part), self.samples).mean(1))
        return torch.cat(found)

    @contextmanager
    def _from_restored(
        self, runs: "_Corrupted", clean: "_Clean", layer: int, rows: Int[Tensor, " r"]
    ) -> Iterator[None]:
        """Go on above a block whose output is corrupted but for one token a row."""
        copies = len(rows) // self.samples
        put = _putting(clean.states[self.view.block(layer).name], rows)
        with self._passing(layer + 1, put(runs.hidden[layer].repeat(copies, 1, 1)), runs.tuples):
            yield

    @contextmanager
    def _from_block(self, runs: "_Corrupted", first: int, copies: int) -> Iterator[None]:
        """Begin at a block with what the corrupted runs hand to it."""
        if first == 0:
            embedded = runs.embedded.repeat(copies, 1, 1)
            with replace_output(self.view.embeddings, lambda _: embedded):
                yield
        else:
            hidden = runs.hidden[first - 1].repeat(copies, 1, 1)
            with self._passing(first, hidden, runs.tuples):
                yield

    @contextmanager
    def _passing(self, first: int, hidden: Tensor, tuples: bool) -> Iterator[None]:
        """Let the blocks below ``first`` do nothing, and the last of them return ``hidden``."""
        *lower, last = [block.module for block in self.view.blocks[:first]]
        with ExitStack() as stack:
            for module in lower:
                stack.enter_context(returning(module, None, tuples))
            stack.enter_context(returning(last, hidden, tuples))
            yield

    # ------------------------------------------------------------------------------------ pieces

    @property
    def _blocks(self) -> range:
        return range(self.view.num_blocks)

    def _module(self, kind: Kind, layer: int) -> str:
        block = self.view.block(layer)
        return {"hidden": block.name, "mlp": block.mlp, "attention": block.attention_out}[kind]

    def _ids(self, fact: Prepared, rows: int) -> Int[Tensor, "r t"]:
        device = self.view.embeddings.get_parameter("weight").device
        return torch.tensor([fact.ids] * rows, device=device)

    def _logits(self, ids: Int[Tensor, "r t"]) -> Float[Tensor, "r v"]:
        """Run the model; its head sees the last token only."""
        rows = torch.arange(len(ids), device=ids.device)
        last = torch.full_like(rows, ids.shape[1] - 1)
        with select_head_positions(self.view.model, (rows, last)):
            output = self.view.model(input_ids=ids, use_cache=False)
        logits: Tensor = output.logits.squeeze(1)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def _probabilities(self, ids: Int[Tensor, "r t"], answer: int) -> Float[Tensor, " r"]:
        return torch.softmax(self._logits(ids), dim=-1)[:, answer]


@dataclass(frozen=True)
class _Clean:
    """The clean run: the answer's probability, and every state by module."""

    probability: Float[Tensor, ""]
    states: dict[str, Float[Tensor, "t d"]]


@dataclass(frozen=True)
class _Corrupted:
    """The corrupted runs: the answer's mean probability, embeddings and blocks' outputs."""

    probability: Float[Tensor, ""]
    embedded: Float[Tensor, "s t d"]
    hidden: list[Float[Tensor, "s t d"]]
    tuples: bool


def _putting(clean: Float[Tensor, "t d"], positions: Int[Tensor, " r"]) -> Any:
    """Return a function that puts each row's clean state at its own token."""

    def put(output: Tensor) -> Tensor:
        mixed = output.clone()
        mixed[torch.arange(len(positions), device=output.device), positions] = clean[positions]
        return mixed

    return put


@torch.no_grad()
def embedding_std(view: ModelView, facts: Sequence[Prepared]) -> float:
    """Return the standard deviation of the embeddings of all subjects' tokens.

    Args:
        view: The model's structure.
        facts: The facts.
    """
    tokens = [fact.ids[position] for fact in facts for position in fact.subject]
    embeddings: nn.Module = view.embeddings
    device = embeddings.get_parameter("weight").device
    vectors = first_tensor(embeddings(torch.tensor([tokens], device=device)))
    return float(vectors.double().std())
