"""KN: Dai et al., Knowledge Neurons in Pretrained Transformers, ACL 2022, arXiv 2104.08696.

Axis names: ``p`` -- prompts; ``a`` -- answer tokens of all prompts; ``l`` -- layers; ``f`` --
neurons of a layer; ``d`` -- hidden width.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import accumulate
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_edit.editors.base import Editor
from lightning_edit.editors.locate.context_templates import OPENINGS, sample_templates, with_bare
from lightning_edit.edits.delta import Delta, LowRank
from lightning_edit.functional.attribution import (
    above_share_of_largest,
    path_points,
    shared_neurons,
)
from lightning_edit.functional.tokens import encode_pair, encode_prompt
from lightning_edit.inference.answers import AnswerRows, answer_logits
from lightning_edit.inference.hooks import capture, replace_output
from lightning_edit.inference.suffix.build import build_suffix_forward
from lightning_edit.inference.tokenized_text import TokenizedText
from lightning_edit.models.weights import weight
from lightning_edit.types import EditBatch, EditRequest

Place = tuple[tuple[int, ...], int]
"""Input tokens, and the token that is predicted after them."""


class KN(Editor):
    r"""Find the MLP neurons that carry a fact, and let them write the new answer.

    A neuron's attribution is its activation times the gradient of the old answer's probability by
    it, integrated while all activations of its layer grow from zero. Neurons that many wordings
    share are kept; to each one's column of the down-projection,
    :math:`-\lambda_1 e(\text{old}) + \lambda_2 e(\text{new})` is added, with e a token's embedding.

    Args:
        layers: Blocks whose neurons are looked at; ``None``: all.
        steps: Points of the integral (20 in the paper).
        threshold: A prompt's neurons have at least this share of its largest attribution (0.2).
        share: Share of the prompts that must agree on a neuron (0.7 in the paper, 0.4 in ports).
        fewest: The share is lowered until at least so many neurons are left (2 in the paper).
        most: The share is raised until at most so many are left (5 in the paper).
        subtract: λ₁ (1 in the paper).
        add: λ₂ (8 in the paper).
        rescale: Bring both embeddings to the length of the column that they are added to, as it was
            when the editor was bound.
        variant: ``paper``, or ``easyedit``, see below.
        context_templates: Texts with one ``{}`` in which the prompt is put for more wordings;
            ``None``: written by the model itself when the editor is bound.
        use_rephrases: Also take the request's own rephrases as wordings. They then can no longer
            measure generalization.
        seed: Seed of the sampled templates.
        rows_per_pass: Most texts in one pass; bounds memory, changes no result.

    Note:
        Made for masked language models; on decoders it is weak. With a column's length taken as it
        stands, each further edit of one neuron would make it nine times as long, and forty would
        leave the range of float32; hence the length at binding, the same for a first edit. Without
        ``old_target`` the model's own continuation, as long as the new answer, is what the neurons
        are to carry. ``variant="easyedit"`` repeats what that port does on GPT-2: neurons before
        their activation function (behind the gate they are something else), all tokens of the old
        answer read at the prompt's end and without a space before it, both ends of the path, and
        the model's continuation in place of the old answer when it is subtracted, found by putting
        each token's text behind the prompt and tokenising again (which changes tokens that are half
        a character). Its one-step configs for larger models are refused: they take one gradient,
        where all neurons are zero.
    """

    batched: ClassVar[bool] = False
    decoder_only_because: ClassVar[str] = (
        "it looks for the neurons behind an answer at the prompt's last token, which predicts it, "
        "while here the prompt's tokens are in the encoder and the answer comes from the decoder"
    )

    def __init__(
        self,
        layers: list[int] | None = None,
        steps: int = 20,
        threshold: float = 0.2,
        share: float = 0.7,
        fewest: int = 2,
        most: int = 5,
        subtract: float = 1.0,
        add: float = 8.0,
        rescale: bool = True,
        variant: Literal["paper", "easyedit"] = "paper",
        context_templates: list[str] | None = None,
        use_rephrases: bool = False,
        seed: int = 0,
        rows_per_pass: int = 256,
    ) -> None:
        super().__init__()
        if rows_per_pass < 1:
            raise ValueError(f"rows_per_pass counts texts, expected 1 or more, got {rows_per_pass}")
        self.as_port = variant == "easyedit"
        self.points = path_points(steps, "ends" if self.as_port else "left")
        self.layers = layers
        self.threshold = threshold
        self.share = share
        self.fewest = fewest
        self.most = most
        self.subtract = subtract
        self.add = add
        self.rescale = rescale
        self.context_templates = None if context_templates is None else with_bare(context_templates)
        self.use_rephrases = use_rephrases
        self.seed = seed
        self.rows_per_pass = rows_per_pass
        self.templates: list[str] = []
        self._lengths: dict[str, Tensor] = {}

    @classmethod
    def default_layers(cls, num_blocks: int) -> list[int]:
        """Return all blocks."""
        return list(range(num_blocks))

    @property
    def edited_layers(self) -> list[int]:
        """The blocks whose neurons are looked at."""
        if self.layers is None:
            return self.default_layers(self.view.num_blocks)
        return sorted(self.layers)

    def on_bind(self) -> None:
        """Let the unedited model write wordings, and keep the lengths of its columns."""
        for layer in self.edited_layers:
            name = self.view.parameter(layer)
            self._lengths[name] = weight(self.language_model, name).read().norm(dim=0)
        if self.context_templates is not None:
            self.templates = list(self.context_templates)
        else:
            self.templates = sample_templates(
                self.language_model, self.tokenizer, OPENINGS, (10,) * len(OPENINGS), self.seed
            )

    def get_extra_state(self) -> dict[str, list[str]]:
        """Keep the wordings in checkpoints: after a resume the model may be edited already."""
        return {"templates": self.templates}

    def set_extra_state(self, state: dict[str, list[str]]) -> None:
        """Take the wordings of a checkpoint."""
        self.templates = list(state["templates"])

    # ------------------------------------------------------------------------------------ editing

    def edit(self, batch: EditBatch) -> Delta:
        """Find neurons and their update, for one request after another.

        Args:
            batch: The requests; ``old_target`` says what the neurons are to carry.

        Returns:
            Updates of rank one a request and layer.
        """
        model = self.language_model
        factors: dict[str, list[LowRank]] = {}
        neurons: list[list[list[int]]] = []
        with torch.inference_mode(False), torch.enable_grad(), ExitStack() as stack:
            for request in batch.requests:
                with self.stage("search"):
                    chosen = self.neurons(request)
                updates = self._updates(request, chosen)
                for name, update in updates.items():
                    factors.setdefault(name, []).append(update)
                neurons.append(chosen.tolist())
                if len(batch) > 1:
                    stack.enter_context(Delta((), updates).applied(model))
        weights = {
            name: LowRank(
                torch.cat([update.left for update in listed], dim=1),
                torch.cat([update.right for update in listed]),
            )
            for name, listed in factors.items()
        }
        return Delta(batch.ids, weights, info={"neurons": neurons})

    def neurons(self, request: EditRequest) -> Int[Tensor, "n 2"]:
        """Return the neurons that carry what the model says now, as pairs (layer, neuron).

        Args:
            request: The fact.
        """
        prompts = [template.replace("{}", request.prompt, 1) for template in self.templates]
        if self.use_rephrases:
            prompts += request.rephrases
        listed = [self._places(request, prompt) for prompt in prompts]
        marked = above_share_of_largest(self.attributions(listed), self.threshold)
        pairs = shared_neurons(marked, self.share, self.fewest, self.most)
        pairs[:, 0] = torch.tensor(self.edited_layers, device=pairs.device)[pairs[:, 0]]
        return pairs

    def _updates(self, request: EditRequest, chosen: Int[Tensor, "n 2"]) -> dict[str, LowRank]:
        new = encode_pair(self.tokenizer, request.prompt, request.target)[1]
        table = self.view.embeddings.get_parameter("weight").detach().double()
        if self.as_port:
            new = self._bare(request.target)
            old = self._continuation_as_text(request.prompt, len(new))
        else:
            old = self._old(request, request.prompt, len(new))
        wanted, unwanted = table[new].sum(0), table[old].sum(0)
        if self.rescale:
            wanted, unwanted = wanted / wanted.norm(), unwanted / unwanted.norm()
        direction = self.add * wanted - self.subtract * unwanted
        updates = {}
        for layer in sorted(set(chosen[:, 0].tolist())):
            name = self.view.parameter(layer)
            columns = chosen[chosen[:, 0] == layer, 1]
            lengths = self._lengths[name] if self.rescale else torch.ones_like(self._lengths[name])
            right = torch.zeros_like(lengths)[None]
            right[0, columns] = lengths[columns]
            updates[name] = LowRank(direction[:, None].float(), right.float())
        return updates

    # ------------------------------------------------------------------------------------- answers

    def _bare(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    @torch.no_grad()
    def _likeliest(self, ids: Sequence[int]) -> int:
        device = self.view.embeddings.get_parameter("weight").device
        rows = AnswerRows.pad([(ids, ())], device)
        return int(answer_logits(self.language_model, rows)[0].argmax())

    def _continuation(self, prompt_ids: Sequence[int], count: int) -> list[int]:
        """Return the model's likeliest next tokens."""
        ids = list(prompt_ids)
        for _ in range(count):
            ids.append(self._likeliest(ids))
        return ids[len(prompt_ids) :]

    def _continuation_as_text(self, prompt: str, count: int) -> list[int]:
        """Return next tokens, each found behind the text of those before, tokenised anew.

        A token that is no whole character comes back from its text as other tokens.
        """
        found: list[int] = []
        for _ in range(count):
            found.append(self._likeliest(encode_prompt(self.tokenizer, prompt)))
            prompt += self.tokenizer.decode(found[-1:])
        return found

    def _old(self, request: EditRequest, prompt: str, count: int) -> list[int]:
        if request.old_target is None:
            return self._continuation(encode_prompt(self.tokenizer, prompt), count)
        return encode_pair(self.tokenizer, prompt, request.old_target)[1]

    def _places(self, request: EditRequest, prompt: str) -> list[Place]:
        """Return where the old answer's tokens are predicted after a prompt."""
        ids = tuple(encode_prompt(self.tokenizer, prompt))
        count = len(encode_pair(self.tokenizer, prompt, request.target)[1])
        old = self._old(request, prompt, count)
        if self.as_port:
            bare = old if request.old_target is None else self._bare(request.old_target)
            return [(ids, token) for token in bare]
        return [((*ids, *old[:number]), token) for number, token in enumerate(old)]

    # --------------------------------------------------------------------------------- attribution

    def attributions(self, prompts: Sequence[Sequence[Place]]) -> Float[Tensor, "p l f"]:
        """Return every neuron's attribution for every prompt, mean over its answer's tokens.

        Args:
            prompts: Where each prompt's answer is predicted.
        """
        places = [place for listed in prompts for place in listed]
        integrate = self._before_activation if self.as_port else self._behind_activation
        each = torch.stack([integrate(places, layer) for layer in self.edited_layers])
        ends = list(accumulate(len(listed) for listed in prompts))
        return torch.stack([part.mean(1) for part in each.tensor_split(ends[:-1], dim=1)])

    def _points(self, places: int) -> Iterator[tuple[list[int], list[float]]]:
        """Yield every place at every point of the path, as many at once as a pass may hold."""
        pairs = [(number, float(point)) for number in range(places) for point in self.points]
        for start in range(0, len(pairs), self.rows_per_pass):
            part = pairs[start : start + self.rows_per_pass]
            yield [number for number, _ in part], [point for _, point in part]

    def _behind_activation(self, places: Sequence[Place], layer: int) -> Float[Tensor, "a f"]:
        """Integrate over the inputs h of a down-projection W.

        Scaling h by α adds (α - 1) W h to what the MLP puts out at one token, so only the blocks
        above run again, on that token; the gradient by h is Wᵀ times the one by what is added.
        """
        texts = [TokenizedText(number, ids, len(ids) - 1) for number, (ids, _) in enumerate(places)]
        tail = build_suffix_forward(self.view, texts, layer, "mlp")
        dtype = torch.promote_types(tail.keys.dtype, torch.float32)
        h = tail.keys.to(dtype)
        W = weight(self.language_model, self.view.parameter(layer)).read(dtype)
        output = h @ W.mT
        tokens = torch.tensor([token for _, token in places], device=h.device)
        total = torch.zeros_like(output)
        for numbers, points in self._points(len(places)):
            rows = torch.tensor(numbers, device=h.device)
            added = (output[rows] * (h.new_tensor(points)[:, None] - 1)).requires_grad_()
            at = torch.arange(len(rows), device=h.device)
            logits = tail.select(rows).logits(added, at, torch.zeros_like(at))
            total.index_add_(0, rows, _probability_gradient(logits, tokens[rows], added))
        return (h * (total @ W) / len(self.points)).double()

    def _before_activation(self, places: Sequence[Place], layer: int) -> Float[Tensor, "a f"]:
        """Integrate over the outputs of an MLP's first projection, as EasyEdit does."""
        model, name = self.language_model, self.view.block(layer).mlp_up[0]
        device = self.view.embeddings.get_parameter("weight").device
        all_rows = AnswerRows.pad([(ids, (token,)) for ids, token in places], device)
        with torch.no_grad(), capture(model, {name: "output"}) as seen:
            answer_logits(model, all_rows)
        activation = seen[name][all_rows.rows, all_rows.positions].detach()
        total = torch.zeros_like(activation)
        for numbers, points in self._points(len(places)):
            rows = AnswerRows.pad([(places[n][0], (places[n][1],)) for n in numbers], device)
            scale = activation.new_tensor(points)[:, None]
            scaled = (activation[numbers] * scale).requires_grad_()

            def place(hidden: Tensor, rows: AnswerRows = rows, new: Tensor = scaled) -> Tensor:
                return hidden.index_put((rows.rows, rows.positions), new)

            with replace_output(model.get_submodule(name), place, within=model):
                logits = answer_logits(model, rows)
            gradient = _probability_gradient(logits, rows.targets, scaled)
            total.index_add_(0, torch.tensor(numbers, device=device), gradient)
        return (activation * total / len(self.points)).double()


def _probability_gradient(logits: Tensor, tokens: Tensor, by: Tensor) -> Tensor:
    """Return the gradient of each row's probability of its token."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    probability = wide.log_softmax(-1).gather(1, tokens[:, None]).exp()
    (gradient,) = torch.autograd.grad(probability.sum(), by)
    return gradient
