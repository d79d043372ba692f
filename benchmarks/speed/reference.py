"""The published algorithms, one request at a time, as plainly as they can be written.

What a faster implementation is compared with: every pass runs the whole network over the whole
texts and the head at every position, every request is searched alone, keys are read layer by layer,
every system is solved from scratch. It shares with the library only what must be equal for results
to be comparable (tokens, templates, second moments) and helpers that cost nothing. Sources: ROME,
arXiv 2202.05262; MEMIT, arXiv 2210.07229; AlphaEdit, arXiv 2410.02355.

Axis names in comments: ``r`` -- rows, a request under each context template; ``t`` -- tokens;
``d`` -- hidden width; ``f`` -- width of a key; ``n`` -- requests.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from stopwatch import Stopwatch
from torch import Tensor

from lightning_edit.editors.locate.base import LocateThenEdit
from lightning_edit.editors.locate.prompts import essence_texts, rewriting_texts
from lightning_edit.editors.locate.solver import LeastSquares
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.evaluation.outcomes import ScoredProbe
from lightning_edit.functional.padding import pad
from lightning_edit.functional.text import first_line
from lightning_edit.inference.hooks import Side, capture, replace_output
from lightning_edit.models.prompt_encoder import PromptEncoder
from lightning_edit.models.weights import weight
from lightning_edit.statistics.cache import moments_for
from lightning_edit.types import EditRequest


class Reference:
    """Edits the way the papers describe, with the settings of a bound editor.

    Args:
        editor: Gives model, tokenizer, templates, layers and hyper-parameters.
        clock: Takes the time of ``search``, ``keys`` and ``solve``.
        head_twice: Read the head a second time over all positions of the rewriting prompts, and
            take the answers' loss from there, as MEMIT's program does (ROME's reads it once).
    """

    def __init__(self, editor: LocateThenEdit, clock: Stopwatch, head_twice: bool = False) -> None:
        self.editor, self.clock, self.head_twice = editor, clock, head_twice
        self.model, self.tokenizer, self.view = editor.language_model, editor.tokenizer, editor.view
        self.layers = editor.edited_layers
        self.moments = moments_for(self.model, self.tokenizer, self.layers, editor.statistics)
        self.steps: list[int] = []

    # ----------------------------------------------------------------------------- target search

    def target(self, request: EditRequest) -> Tensor:
        """Find the target vector h₀ + δ of one request."""
        batch = encode_batch(self.tokenizer, [request])
        texts = rewriting_texts(self.tokenizer, batch, self.editor.templates)
        # The divergence is read at the subject, but the words after it are run all the same.
        (essence,) = essence_texts(self.tokenizer, batch, "prompt_end")
        ids, mask = pad([text.ids for text in [*texts, essence]])
        subjects = torch.tensor([text.subject for text in [*texts, essence]])
        rows = torch.arange(len(ids))
        targets = torch.full(ids[:-1].shape, -100)
        for row, text in enumerate(texts):
            targets[row, len(text.ids) - len(text.answer) : len(text.ids)] = torch.tensor(
                text.answer
            )
        predicted = targets != -100
        objective = self.editor.objective
        delta = torch.zeros(self.view.hidden_size, requires_grad=True)
        optimizer = torch.optim.Adam([delta], lr=objective.lr)
        initial: list[Tensor] = []
        before: Tensor | None = None

        def add(hidden: Tensor) -> Tensor:
            if not initial:
                initial.append(hidden[0, subjects[0]].detach().clone())
            moved = hidden.clone()
            moved[rows, subjects] = moved[rows, subjects] + delta
            return moved

        block = self.view.block(self.layers[-1])
        at_block = self.editor.target_search.site == "block"
        site = self.model.get_submodule(block.name if at_block else block.mlp)
        last = self.view.blocks[-1].name
        for step in range(objective.steps):
            with replace_output(site, add), capture(self.model, {last: "output"}) as seen:
                logits = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            answers = logits[:-1]
            if self.head_twice:
                assert self.view.final_norm is not None
                answers = self.view.head(self.view.final_norm(seen[last][:-1]))
            log_probs = torch.log_softmax(answers, dim=-1)
            chosen = log_probs.gather(2, targets.clamp_min(0)[:, :, None]).squeeze(2)
            nll = (-(chosen * predicted).sum(1) / predicted.sum(1)).mean()
            now = torch.log_softmax(logits[-1, essence.subject], dim=-1)
            before = now.detach() if before is None else before
            kl = (now.exp() * (now - before)).sum()
            decay = delta.norm() / initial[0].norm() ** 2
            loss = nll + objective.kl_factor * kl + objective.weight_decay * decay
            if loss < objective.threshold or step == objective.steps - 1:
                break
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            largest = objective.clamp * initial[0].norm()
            with torch.no_grad():
                if delta.norm() > largest:
                    delta.mul_(largest / delta.norm())
        self.steps.append(step)
        return initial[0] + delta.detach()

    # -------------------------------------------------------------------------------------- keys

    @torch.no_grad()
    def read(
        self, request: EditRequest, templates: Sequence[str], module: str, side: Side
    ) -> Tensor:
        """Return what a module gets or gives at the subject of one request, a line a template."""
        batch = encode_batch(self.tokenizer, [request])
        texts = rewriting_texts(self.tokenizer, batch, templates)
        ids, mask = pad([text.ids[: len(text.ids) - len(text.answer) + 1] for text in texts])
        with capture(self.model, {module: side}) as seen:
            self.model(input_ids=ids, attention_mask=mask, use_cache=False)
        return seen[module][torch.arange(len(ids)), [text.subject for text in texts]]

    def mean_key(self, request: EditRequest, layer: int) -> Tensor:
        """Return a request's key: half the bare prompt's, half the mean of all others."""
        module = self.view.down_projection(layer)
        keys = self.read(request, self.editor.templates, module, "input")
        return (keys[0] + keys[1:].mean(0)) / 2

    # ------------------------------------------------------------------------------------ writing

    def rome(self, requests: Sequence[EditRequest]) -> tuple[Tensor, list[Tensor]]:
        """Return targets and one update a request, each on the unedited model."""
        (layer,) = self.layers
        module = self.view.down_projection(layer)
        with self.clock.stage("solve"):
            inverse = torch.linalg.inv(self._moment(layer))
        targets, updates = [], []
        for request in requests:
            with self.clock.stage("keys"):
                mean = self.read(request, self.editor.templates, module, "input").mean(0)
            with self.clock.stage("search"):
                targets.append(self.target(request))
            with self.clock.stage("keys"):
                key = self.read(request, ["{}"], module, "input")[0]
                value = self.read(request, ["{}"], module, "output")[0]
            with self.clock.stage("solve"):
                direction = inverse @ mean.double()
                residual = (targets[-1] - value).double() / (key.double() @ direction)
                updates.append(torch.outer(residual, direction))
        return torch.stack(targets), updates

    def memit(self, requests: Sequence[EditRequest]) -> tuple[Tensor, dict[int, Tensor]]:
        """Return targets and every layer's update for all requests together."""
        with self.clock.stage("search"):
            targets = torch.stack([self.target(request) for request in requests])
        updates: dict[int, Tensor] = {}
        top = self.view.block(self.layers[-1]).name
        with self._restored():
            for done, layer in enumerate(self.layers):
                with self.clock.stage("keys"):
                    keys = torch.stack([self.mean_key(request, layer) for request in requests])
                    now = torch.cat([self.read(one, ["{}"], top, "output") for one in requests])
                with self.clock.stage("solve"):
                    residual = (targets - now).double().mT / (len(self.layers) - done)
                    updates[layer] = residual @ self.rows(layer, keys.double().mT)
                    down = weight(self.model, self.view.parameter(layer))
                    down.write(down.read() + updates[layer])
            self.remember(requests)
        return targets, updates

    def rows(self, layer: int, keys: Tensor) -> Tensor:
        """Return what the residuals are multiplied with, (n, f): MEMIT's eq. 14."""
        total = self.editor.moment_weight * self._moment(layer) + keys @ keys.mT
        return torch.linalg.solve(total, keys).mT

    def remember(self, requests: Sequence[EditRequest]) -> None:
        """Take the keys of the batch into the history; MEMIT has none."""

    def _moment(self, layer: int) -> Tensor:
        moment = self.moments[layer]
        if moment is None:
            width = weight(self.model, self.view.parameter(layer)).shape[1]
            return torch.eye(width, dtype=torch.float64)
        return moment.double()

    @contextmanager
    def _restored(self) -> Iterator[None]:
        """Give the edited layers their weights back afterwards."""
        weights = [weight(self.model, self.view.parameter(layer)) for layer in self.layers]
        kept = [one.read() for one in weights]
        try:
            yield
        finally:
            for one, value in zip(weights, kept, strict=True):
                one.write(value)


class AlphaEditReference(Reference):
    """MEMIT's loop with AlphaEdit's solve: updates stay in the null space of the second moment.

    The projectors are made once, from the unedited model's second moments, and are the editor's.
    """

    def __init__(self, editor: LocateThenEdit, clock: Stopwatch) -> None:
        super().__init__(editor, clock)
        solver = cast(LeastSquares, editor.solver)
        self.preserved = {
            number: solver.preserved(layer) for number, layer in editor.bound_layers.items()
        }
        self.history: dict[int, Tensor] = {}

    def rows(self, layer: int, keys: Tensor) -> Tensor:
        """Return what the residuals are multiplied with, (n, f): the solve of the authors' code."""
        basis = self.preserved[layer].basis
        projector = basis @ basis.mT
        total = projector @ keys @ keys.mT
        total.diagonal().add_(self.preserved[layer].ridge)
        return torch.linalg.solve(total, projector @ keys).mT

    def remember(self, requests: Sequence[EditRequest]) -> None:
        """Read the keys again on the edited model and add K Kᵀ to every layer's history."""
        with self.clock.stage("keys"):
            for layer in self.layers:
                keys = torch.stack([self.mean_key(request, layer) for request in requests])
                self.history[layer] = keys.mT @ keys


# ------------------------------------------------------------------------------------- evaluation


@torch.no_grad()
def force_one_by_one(
    model: Any, tokenizer: Any, probes: Sequence[ScoredProbe]
) -> list[dict[str, list[float]]]:
    """Return the token losses of every answer of every probe, each in a pass of its own."""
    found = []
    for item in probes:
        answers = [*item.probe.answers, *([item.contrast] if item.contrast else [])]
        losses = {}
        for text in answers:
            prompt, answer = next(PromptEncoder.of(tokenizer).pairs([(item.probe.prompt, text)]))
            ids = torch.tensor([prompt + answer])
            logits = model(input_ids=ids, use_cache=False).logits[0]
            log_probs = torch.log_softmax(logits[:-1], dim=-1)
            places = torch.arange(len(prompt) - 1, len(prompt) + len(answer) - 1)
            losses[text] = (-log_probs[places, torch.tensor(answer)]).tolist()
        found.append(losses)
    return found


@torch.no_grad()
def generate_one_by_one(
    model: Any, tokenizer: Any, probes: Sequence[ScoredProbe], new_tokens: Sequence[int]
) -> list[str]:
    """Return every probe's greedy continuation, each generated alone."""
    found = []
    end = tokenizer.eos_token_id
    for item, limit in zip(probes, new_tokens, strict=True):
        (ids,) = PromptEncoder.of(tokenizer).prompts([item.probe.prompt])
        output = model.generate(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=limit, do_sample=False, pad_token_id=end, eos_token_id=end,
        )  # fmt: skip
        found.append(first_line(tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True)))
    return found


# ------------------------------------------------------------------------------------- statistics


@torch.no_grad()
def moments_layer_by_layer(
    model: Any, tokenizer: Any, texts: Sequence[str], modules: Sequence[str], rows: int
) -> dict[str, Tensor]:
    """Return E[k kᵀ] of every module's inputs, with one full pass over the texts a module."""
    found = {}
    for module in modules:
        total, count = 0.0, 0
        for start in range(0, len(texts), rows):
            batch = [tokenizer(text)["input_ids"] for text in texts[start : start + rows]]
            ids, mask = pad(batch)
            with capture(model, {module: "input"}) as seen:
                model(input_ids=ids, attention_mask=mask, use_cache=False)
            keys = seen[module][mask.bool()].double()
            total, count = total + keys.mT @ keys, count + len(keys)
        found[module] = total / count
    return found
