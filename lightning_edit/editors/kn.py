"""KN: Dai et al., Knowledge Neurons in Pretrained Transformers, ACL 2022, arXiv 2104.08696.

Axis names: ``p`` -- prompts; ``a`` -- answer tokens of all prompts; ``l`` -- layers; ``f`` --
neurons of a layer; ``d`` -- hidden width.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_edit.delta import Delta, LowRank
from lightning_edit.editors.base import Editor
from lightning_edit.editors.templates import OPENINGS, sample_templates, with_bare
from lightning_edit.functional.attribution import (
    above_share_of_largest,
    path_points,
    shared_neurons,
)
from lightning_edit.functional.tokens import encode_pair, encode_prompt
from lightning_edit.models.answers import AnswerRows, answer_logits
from lightning_edit.models.hooks import Side, capture, replace_input, replace_output
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
        rescale: Bring both embeddings to the length of the column that they are added to.
        variant: ``paper``, or ``easyedit``, see below.
        context_templates: Texts with one ``{}`` in which the prompt is put for more wordings;
            ``None``: written by the model itself when the editor is bound.
        use_rephrases: Also take the request's own rephrases as wordings. They then can no longer
            measure generalization.
        seed: Seed of the sampled templates.
        rows_per_pass: Most texts in one pass; bounds memory, changes no result.

    Note:
        Made for masked language models; on decoders it is weak. Without ``old_target`` the model's
        own continuation, as long as the new answer, is what the neurons are to carry.
        ``variant="easyedit"`` repeats what that port does on GPT-2: neurons before their activation
        function (behind the gate they are something else), all tokens of the old answer read at the
        prompt's end and without a space before it, both ends of the path, and the model's
        continuation in place of the old answer when it is subtracted. Its one-step configs for
        larger models are refused: they take one gradient, where all neurons are zero.
    """

    batched: ClassVar[bool] = False

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
        """Let the unedited model write wordings."""
        for layer in self.edited_layers:
            self.view.block(layer)
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
        scores = torch.stack([self._attributions(places) for places in listed])
        marked = above_share_of_largest(scores, self.threshold)
        pairs = shared_neurons(marked, self.share, self.fewest, self.most)
        pairs[:, 0] = torch.tensor(self.edited_layers, device=pairs.device)[pairs[:, 0]]
        return pairs

    def _updates(self, request: EditRequest, chosen: Int[Tensor, "n 2"]) -> dict[str, LowRank]:
        prompt_ids, new = encode_pair(self.tokenizer, request.prompt, request.target)
        table = self.view.embeddings.get_parameter("weight").detach().double()
        if self.as_port:
            new = self._bare(request.target)
            old = self._continuation(prompt_ids, len(new))
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
            value = weight(self.language_model, name).read()
            right = value.new_zeros(1, value.shape[1])
            right[0, columns] = value[:, columns].norm(dim=0) if self.rescale else 1.0
            updates[name] = LowRank(direction[:, None].float(), right.float())
        return updates

    # ------------------------------------------------------------------------------------- answers

    def _bare(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    @torch.no_grad()
    def _continuation(self, prompt_ids: Sequence[int], count: int) -> list[int]:
        """Return the model's likeliest next tokens."""
        device = self.view.embeddings.get_parameter("weight").device
        ids = list(prompt_ids)
        for _ in range(count):
            rows = AnswerRows.pad([(ids, ())], device)
            ids.append(int(answer_logits(self.language_model, rows)[0].argmax()))
        return ids[len(prompt_ids) :]

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

    def _attributions(self, places: Sequence[Place]) -> Float[Tensor, "l f"]:
        """Return every neuron's attribution, mean over the answer's tokens."""
        device = self.view.embeddings.get_parameter("weight").device
        rows = AnswerRows.pad([(ids, (token,)) for ids, token in places], device)
        modules, side = self._sites()
        with torch.no_grad(), capture(self.language_model, dict.fromkeys(modules, side)) as seen:
            answer_logits(self.language_model, rows)
        each = [
            self._integrated(places, module, seen[module][rows.rows, rows.positions].detach())
            for module in modules
        ]
        return torch.stack(each)

    def _sites(self) -> tuple[list[str], Side]:
        """Modules at which the neurons of each layer are seen."""
        blocks = [self.view.block(layer) for layer in self.edited_layers]
        if self.as_port:
            return [block.mlp_up[0] for block in blocks], "output"
        return [block.mlp_down for block in blocks], "input"

    def _integrated(
        self, places: Sequence[Place], name: str, activation: Float[Tensor, "a f"]
    ) -> Float[Tensor, " f"]:
        module = self.language_model.get_submodule(name)
        total = torch.zeros_like(activation, dtype=torch.float64)
        points = [(n, float(point)) for n in range(len(places)) for point in self.points]
        for start in range(0, len(points), self.rows_per_pass):
            part = points[start : start + self.rows_per_pass]
            rows = AnswerRows.pad(
                [(places[n][0], (places[n][1],)) for n, _ in part], activation.device
            )
            of = torch.tensor([n for n, _ in part], device=activation.device)
            scale = activation.new_tensor([point for _, point in part])[:, None]
            scaled = (activation[of] * scale).requires_grad_()

            def place(hidden: Tensor, rows: AnswerRows = rows, new: Tensor = scaled) -> Tensor:
                # OPT's MLP sees rows and positions on one axis.
                flat = hidden.reshape(*rows.ids.shape, -1)
                return flat.index_put((rows.rows, rows.positions), new).view(hidden.shape)

            replace = replace_output if self.as_port else replace_input
            with replace(module, place):
                logits = answer_logits(self.language_model, rows)
            log_probs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
            probability = log_probs.gather(1, rows.targets[:, None]).exp()
            (gradient,) = torch.autograd.grad(probability.sum(), scaled)
            total.index_add_(0, of, gradient.double())
        return (total * activation / len(self.points)).mean(0)
