"""Small editors that act at run time, one of each kind: texts, routing, modules, learned parts."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_edit.editors.base import Editor
from lightning_edit.editors.module_runtime import ModuleRuntime, PromptDecisionResponder
from lightning_edit.edits.delta import Delta
from lightning_edit.inference.hooks import capture
from lightning_edit.inference.model_call import ModelCall
from lightning_edit.inference.module_adapter import ModuleAdapter
from lightning_edit.inference.responder import Question, Responder, Statement, TokenScores
from lightning_edit.types import EditBatch


class Facts:
    """Runtime of the editors of texts: the texts of the edits in force."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def install(self, in_force: Sequence[Delta]) -> None:
        self.texts = {name: text for one in in_force for name, text in one.prompts.items()}


class Told(Editor):
    """Puts the texts of all edits before every prompt."""

    edits_weights = False
    batched = False

    def __init__(self, form: str = "{prompt} {target}. ") -> None:
        super().__init__()
        self.form = form

    def on_bind(self) -> None:
        self.facts = Facts()

    def edit(self, batch: EditBatch) -> Delta:
        texts = {r.id: self.form.format(prompt=r.prompt, target=r.target) for r in batch.requests}
        return Delta(batch.ids, prompts=texts)

    def runtime(self) -> Facts:
        return self.facts

    def responder(self, in_force: Sequence[Delta], batch_size: int = 64) -> Responder:
        return _ToldResponder(self, super().responder(in_force, batch_size))

    def before(self, prompt: str) -> str:
        """Return the text before a prompt."""
        return "".join(self.facts.texts.values())


class _ToldResponder(Responder):
    def __init__(self, editor: "Told | Sorter", inner: Responder) -> None:
        self.editor, self.inner = editor, inner

    def _told(self, prompt: str) -> str:
        return self.editor.before(prompt) + prompt

    def added_tokens(self, questions: Sequence[Question]) -> list[int]:
        size = self.editor.prompts.tokenizer
        told = [(q.prompt, self._told(q.prompt)) for q in questions]
        return [len(size(b)["input_ids"]) - len(size(a)["input_ids"]) for a, b in told]

    def loglikelihood(self, statements: Sequence[Statement]) -> list[TokenScores]:
        return self.inner.loglikelihood(
            [s._replace(prompt=self._told(s.prompt)) for s in statements]
        )

    def loglikelihood_rolling(
        self, texts: Sequence[str], max_tokens: int | None = None
    ) -> list[TokenScores]:
        return self.inner.loglikelihood_rolling(texts, max_tokens)

    def generate_until(
        self, questions: Sequence[Question], stop: Sequence[str] = ("\n",)
    ) -> list[str]:
        told = [q._replace(prompt=self._told(q.prompt)) for q in questions]
        return self.inner.generate_until(told, stop)


class Sorter(Editor):
    """Puts an edit's text before the prompts that a learned network takes for questions about it.

    What it has learnt are weights of letters; the prompts of an edit score far above the others.
    """

    edits_weights = False
    batched = False

    def __init__(self, threshold: float = 0.99, seed: int = 0) -> None:
        super().__init__()
        self.threshold = threshold
        self.seed = seed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.letters = nn.Embedding(256, 8)
        self.register_buffer("learnt", torch.zeros((), dtype=torch.int64))

    def on_bind(self) -> None:
        self.facts = Facts()
        self.letters.requires_grad_(False)

    def train_on(self, steps: int) -> "Sorter":
        """Move the parameters away from what ``__init__`` gives them."""
        self.letters.weight.data = self.letters.weight.data.roll(steps, 0)
        self.learnt += steps
        return self

    def encode(self, text: str) -> Tensor:
        """Return a text as a vector of length one."""
        # float64 by hand, so that no thread count changes a bit
        rows = self.letters.weight[torch.tensor(list(text.encode()))].double()
        places = torch.arange(1, len(rows) + 1)[:, None].double()
        summed = (rows * places).sum(0)
        return summed / summed.norm()

    def edit(self, batch: EditBatch) -> Delta:
        texts = {r.id: f"{r.prompt} {r.target}. " for r in batch.requests}
        keys = {f"key/{r.id}": self.encode(r.prompt) for r in batch.requests}
        return Delta(batch.ids, state=keys, prompts=texts)

    def runtime(self) -> Facts:
        return self.facts

    def responder(self, in_force: Sequence[Delta], batch_size: int = 64) -> Responder:
        self._in_force = in_force
        return _ToldResponder(self, super().responder(in_force, batch_size))

    def before(self, prompt: str) -> str:
        """Return the text of the edit that a prompt asks about, if any."""
        key = self.encode(prompt)
        scores = {
            name: float(key @ one.state[f"key/{name}"])
            for one in self._in_force
            for name in one.prompts
        }
        best = max(scores, key=lambda name: scores[name], default=None)
        if best is None or scores[best] < self.threshold:
            return ""
        return self.facts.texts[best]


class _BookAdapter(ModuleAdapter):
    by_prompt = True

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values

    def act(self, hidden: Tensor, output: Tensor, call: ModelCall | None) -> Tensor:
        assert call is not None

        def choose() -> Tensor:
            near = torch.cdist(call.at_ends(hidden), self.keys)
            hit = near.min(1).values < 1e-3
            return torch.where(hit[:, None], self.values[near.argmin(1)], 0.0)

        chosen = call.decide("book", choose)[:, None]
        return torch.where(chosen != 0, output + chosen, output)


class Book(Editor):
    """Codebook: a prompt whose last state is near a key has a value added to all its tokens.

    It learns nothing: values push towards the first token of the answer.
    """

    edits_weights = False
    batched = False

    def __init__(self, block: int = 1, strength: float = 200.0) -> None:
        super().__init__()
        self.block = block
        self.strength = strength

    def on_bind(self) -> None:
        self.own = ModuleRuntime(self.language_model, self._adapters)

    @property
    def place(self) -> str:
        """Dotted name of the down-projection."""
        return self.view.block(self.block).mlp_down

    def _adapters(self, in_force: Sequence[Delta]) -> Mapping[str, ModuleAdapter]:
        keys = torch.cat([one.state["key"] for one in in_force])
        values = torch.cat([one.state["value"] for one in in_force])
        return {self.place: _BookAdapter(keys, values)}

    def edit(self, batch: EditBatch) -> Delta:
        keys, values = [], []
        head = self.language_model.get_output_embeddings().weight
        for one in batch.encoded:
            with torch.no_grad(), capture(self.language_model, {self.place: "input"}) as seen:
                self.language_model(torch.tensor([one.prompt_ids]))
            keys.append(seen[self.place][0, -1])
            values.append(self.strength * head[one.target_ids[0]].detach())
        return Delta(batch.ids, state={"key": torch.stack(keys), "value": torch.stack(values)})

    def runtime(self) -> ModuleRuntime:
        return self.own

    def responder(self, in_force: Sequence[Delta], batch_size: int = 64) -> Responder:
        return PromptDecisionResponder(self.language_model, self.prompts, batch_size)


class _NeuronAdapter(ModuleAdapter):
    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values

    def act(self, hidden: Tensor, output: Tensor, call: ModelCall | None) -> Tensor:
        return output + torch.relu(hidden @ self.keys.mT) @ self.values


class Neurons(Editor):
    """Extra neurons beside an MLP, at work on every token of every text."""

    edits_weights = False
    batched = True

    def __init__(self, block: int = 0, scale: float = 0.5) -> None:
        super().__init__()
        self.block = block
        self.scale = scale

    def on_bind(self) -> None:
        self.own = ModuleRuntime(self.language_model, self._adapters)

    def _adapters(self, in_force: Sequence[Delta]) -> Mapping[str, ModuleAdapter]:
        keys = torch.cat([one.state["key"] for one in in_force])
        values = torch.cat([one.state["value"] for one in in_force])
        return {self.view.block(self.block).mlp_down: _NeuronAdapter(keys, values)}

    def edit(self, batch: EditBatch) -> Delta:
        name = self.view.block(self.block).mlp_down
        head: Any = self.language_model.get_output_embeddings()
        keys, values = [], []
        for one in batch.encoded:
            with torch.no_grad(), capture(self.language_model, {name: "input"}) as seen:
                self.language_model(torch.tensor([one.prompt_ids]))
            keys.append(self.scale * seen[name][0, -1])
            values.append(self.scale * head.weight[one.target_ids[0]].detach())
        return Delta(batch.ids, state={"key": torch.stack(keys), "value": torch.stack(values)})

    def runtime(self) -> ModuleRuntime:
        return self.own
