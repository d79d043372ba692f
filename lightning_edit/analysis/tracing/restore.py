"""Causal tracing: corrupt the subject with noise, restore one clean state, score the answer.

The states below the lowest restored block are the same in every run on one fact, so they are
computed once: a forward pass starts at that block, with one row per restored token and noise
sample.

Axis names: ``s`` -- noise samples; ``t`` -- tokens of the text; ``r`` -- rows of one pass: a
restored token and a noise sample each; ``d`` -- hidden size; ``p`` -- restored tokens: the
subject's first and all after it (tokens before it have clean states in every run); ``l`` --
layers; ``v`` -- vocabulary.
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
from lightning_edit.functional.tracing import indirect_effect, noise, window
from lightning_edit.inference.answer_pass import logits_at, wide
from lightning_edit.inference.hooks import (
    Side,
    capture,
    first_tensor,
    replace_output,
    returning,
    returns_tuples,
)
from lightning_edit.models.eval_mode import in_eval_mode
from lightning_edit.models.prompt_encoder import PromptEncoder, PromptText
from lightning_edit.models.view import ModelView

Kind = Literal["hidden", "mlp", "attention"]
KINDS: tuple[Kind, ...] = ("hidden", "mlp", "attention")


@dataclass(frozen=True)
class Prepared:
    """A tokenised fact: prompt ids, subject positions, first answer token.

    Args:
        ids: Token ids of the prompt.
        subject: Positions of the subject's tokens.
        answer: Id of the answer's first token.
    """

    ids: tuple[int, ...]
    subject: range
    answer: int

    @classmethod
    def of(cls, tokenizer: Any, fact: Fact) -> "Prepared":
        """Tokenise a fact and locate its subject.

        Args:
            tokenizer: A fast tokenizer.
            fact: The fact.

        Raises:
            DataError: If its subject or answer has no token, or both share one.
        """
        try:
            text = PromptText(fact.prompt, fact.answer, (fact.start, fact.end))
            (encoded,) = PromptEncoder.of(tokenizer).encode([text])
        except ValueError as error:
            raise DataError(f"the fact {fact.prompt!r} cannot be traced: {error}") from error
        first, last = encoded.subject_first, encoded.subject_last
        assert first is not None  # a subject was asked for
        assert last is not None
        return cls(encoded.prompt, range(first, last + 1), encoded.answer[0])


@dataclass(frozen=True)
class Effects:
    """Causal-tracing result of one fact: clean and corrupted probability, indirect effects.

    Args:
        clean: Probability of the answer's first token in the clean run.
        corrupted: The same with noise on the subject, averaged over the samples.
        indirect: Indirect effect of restoring a token at a layer, by kind of state.
    """

    clean: float
    corrupted: float
    indirect: Mapping[Kind, Float[Tensor, "p l"]]


@dataclass(frozen=True)
class Tracer:
    """Causal tracer of one decoder-only language model.

    Args:
        view: The model's structure.
        scale: Standard deviation of the noise on the subject's embeddings.
        samples: Noise samples (corrupted runs) per fact.
        width: Window of blocks whose MLPs or attentions are restored together.
        kinds: Kinds of states to restore.
        rows_per_pass: Maximum rows per forward pass; bounds memory, changes no result.
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
        """Return the model's next-token prediction (argmax) for a fact's prompt.

        Args:
            fact: The fact.
        """
        ids = self._ids(fact, 1)
        return int(self._logits(ids).argmax())

    @torch.no_grad()
    def trace(self, fact: Prepared) -> Effects:
        """Trace one fact: indirect effects of every kind of state, token and layer.

        Args:
            fact: A fact that the model predicts.
        """
        states = self._run_clean(fact)
        runs = self._run_corrupted(fact)
        indirect: dict[Kind, Tensor] = {}
        for kind in self.kinds:
            columns = [
                self._restored_probabilities(fact, kind, layer, states, runs)
                for layer in range(self.view.num_blocks)
            ]
            indirect[kind] = indirect_effect(torch.stack(columns, 1), runs.probability)
        return Effects(states.probability.item(), runs.probability.item(), indirect)

    # ------------------------------------------------------------------------------------ passes

    def _run_clean(self, fact: Prepared) -> "_CleanRun":
        modules = {
            kind: [self._module_name(kind, layer) for layer in self._blocks] for kind in KINDS
        }
        wanted: dict[str, Side] = {name: "output" for kind in self.kinds for name in modules[kind]}
        ids = self._ids(fact, 1)
        with capture(self.view.model, wanted) as seen:
            probability = self._probabilities(ids, fact.answer)
        kept = {name: states[0] for name, states in seen.items()}
        return _CleanRun(probability[0], kept)

    def _run_corrupted(self, fact: Prepared) -> "_CorruptedRuns":
        samples_noise = noise(
            self.samples, len(fact.subject), self.view.hidden_size, self.scale, self.seed
        )
        embedded: list[Tensor] = []

        def add(output: Tensor) -> Tensor:
            noisy = output.clone()
            place = slice(fact.subject.start, fact.subject.stop)
            noisy[:, place] += samples_noise.to(noisy.device, noisy.dtype)
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
        return _CorruptedRuns(probabilities.mean(), embedded[0], hidden, tuples[0])

    def _restored_probabilities(
        self, fact: Prepared, kind: Kind, layer: int, clean: "_CleanRun", runs: "_CorruptedRuns"
    ) -> Float[Tensor, " p"]:
        """Return the answer's probability for each token with a state restored around a layer."""
        positions = range(fact.subject.start, len(fact.ids))
        found = []
        tokens = max(1, self.rows_per_pass // self.samples)
        for start in range(0, len(positions), tokens):
            part = positions[start : start + tokens]
            rows = torch.tensor(part, device=runs.embedded.device).repeat_interleave(self.samples)
            ids = self._ids(fact, len(rows))
            with ExitStack() as stack:
                if kind == "hidden":
                    stack.enter_context(self._patch_hidden_state(runs, clean, layer, rows))
                else:
                    layers = window(layer, self.width, self.view.num_blocks)
                    stack.enter_context(self._start_at_block(runs, layers.start, len(part)))
                    for one in layers:
                        name = self._module_name(kind, one)
                        patch = _state_patch(clean.states[name], rows)
                        module = self.view.model.get_submodule(name)
                        stack.enter_context(replace_output(module, patch, within=self.view.model))
                probabilities = self._probabilities(ids, fact.answer)
            found.append(probabilities.view(len(part), self.samples).mean(1))
        return torch.cat(found)

    @contextmanager
    def _patch_hidden_state(
        self, runs: "_CorruptedRuns", clean: "_CleanRun", layer: int, rows: Int[Tensor, " r"]
    ) -> Iterator[None]:
        """Start above a block, with its output corrupted except for one restored token per row."""
        copies = len(rows) // self.samples
        patch = _state_patch(clean.states[self.view.block(layer).name], rows)
        with self._skip_blocks(
            layer + 1, patch(runs.hidden[layer].repeat(copies, 1, 1)), runs.tuples
        ):
            yield

    @contextmanager
    def _start_at_block(self, runs: "_CorruptedRuns", first: int, copies: int) -> Iterator[None]:
        """Start the forward pass at a block, with the corrupted runs' hidden states as input."""
        if first == 0:
            embedded = runs.embedded.repeat(copies, 1, 1)
            with replace_output(self.view.embeddings, lambda _: embedded):
                yield
        else:
            hidden = runs.hidden[first - 1].repeat(copies, 1, 1)
            with self._skip_blocks(first, hidden, runs.tuples):
                yield

    @contextmanager
    def _skip_blocks(self, first: int, hidden: Tensor, tuples: bool) -> Iterator[None]:
        """Skip the blocks below ``first``; the last of them returns the hidden state ``hidden``."""
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

    def _module_name(self, kind: Kind, layer: int) -> str:
        block = self.view.block(layer)
        return {"hidden": block.name, "mlp": block.mlp, "attention": block.attention_out}[kind]

    def _ids(self, fact: Prepared, rows: int) -> Int[Tensor, "r t"]:
        device = self.view.embeddings.get_parameter("weight").device
        return torch.tensor([fact.ids] * rows, device=device)

    def _logits(self, ids: Int[Tensor, "r t"]) -> Float[Tensor, "r v"]:
        """Return the logits of the last token; the head runs at that position only."""
        rows = torch.arange(len(ids), device=ids.device)
        last = torch.full_like(rows, ids.shape[1] - 1)
        with in_eval_mode(self.view.model):
            return wide(logits_at(self.view.model, {"input_ids": ids}, (rows, last)))

    def _probabilities(self, ids: Int[Tensor, "r t"], answer: int) -> Float[Tensor, " r"]:
        return torch.softmax(self._logits(ids), dim=-1)[:, answer]


@dataclass(frozen=True)
class _CleanRun:
    """Clean run: probability of the answer, and the states of every module by name."""

    probability: Float[Tensor, ""]
    states: dict[str, Float[Tensor, "t d"]]


@dataclass(frozen=True)
class _CorruptedRuns:
    """Corrupted runs: mean probability of the answer, noisy embeddings, block outputs."""

    probability: Float[Tensor, ""]
    embedded: Float[Tensor, "s t d"]
    hidden: list[Float[Tensor, "s t d"]]
    tuples: bool


def _state_patch(clean: Float[Tensor, "t d"], positions: Int[Tensor, " r"]) -> Any:
    """Return an activation patch that sets each row's clean state at its own token position."""

    def patch(output: Tensor) -> Tensor:
        mixed = output.clone()
        mixed[torch.arange(len(positions), device=output.device), positions] = clean[positions]
        return mixed

    return patch


@torch.no_grad()
def embedding_std(view: ModelView, facts: Sequence[Prepared]) -> float:
    """Return the standard deviation of the subject tokens' embeddings, the unit of the noise.

    Args:
        view: The model's structure.
        facts: The facts.
    """
    tokens = [fact.ids[position] for fact in facts for position in fact.subject]
    embeddings: nn.Module = view.embeddings
    device = embeddings.get_parameter("weight").device
    vectors = first_tensor(embeddings(torch.tensor([tokens], device=device)))
    return float(vectors.double().std())
