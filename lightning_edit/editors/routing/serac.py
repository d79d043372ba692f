"""SERAC: Mitchell et al., Memory-Based Model Editing at Scale, ICML 2022, arXiv 2206.06520."""

import logging
from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from lightning_edit.datamodules.loader import StepRequests
from lightning_edit.editors.routing.base import Mixing, RoutingEditor
from lightning_edit.editors.routing.memory import ScopeMemory, stored_delta
from lightning_edit.editors.routing.neighbours import Neighbours, prompt_vectors
from lightning_edit.editors.routing.networks import ScopeKind
from lightning_edit.editors.routing.objectives import (
    edit_nll,
    edit_scores,
    mixture_terms,
    scope_terms,
)
from lightning_edit.editors.routing.scope_batch import (
    VIEWS,
    ScopeBatch,
    ScopeCollate,
    ScopeSampler,
)
from lightning_edit.editors.validation_log import log_evaluation
from lightning_edit.exceptions import ConfigError, DataError
from lightning_edit.models.identity import describe_language_model
from lightning_edit.types import EditRequest
from lightning_edit.types.probes import ASPECT_OF_KIND

log = logging.getLogger(__name__)


class SERAC(RoutingEditor):
    r"""Edits kept as text: a scope classifier sends questions about them to a small second model.

    An edit is stored, and the language model never changes. A question :math:`x` gets the score
    :math:`s_i = \exp(-\kappa\,\lVert \mathrm{enc}(x) - \mathrm{enc}(e_i)\rVert^2)` with each stored
    edit; if the best score is above one half, strictly, a *counterfactual model* reads that edit
    and then the question, and answers; otherwise the language model answers as it always did. Both
    networks are trained, independently of each other, by :math:`c_e L_e + c_l L_l`: the negative
    log-likelihood :math:`L_e` of the answer under the counterfactual model behind the edit, and
    :math:`L_l = \mathrm{mean}_{in}(-\log s) + \mathrm{mean}_{out}(-\log(1 - s))`.

    Mitchell, Lin, Bosselut, Manning, Finn, section 3.

    Args:
        classifier: Encoder of the scope classifier: ``base`` (new, in DistilBERT's architecture,
            with the language model's token embeddings to begin with), ``scratch`` (new, random), or
            the folder of one such as DistilBERT with its own tokenizer.
        classifier_kind: ``embedding``: distance of two vectors, as for question answering;
            ``cross-attention``: a classifier that reads edit and question together, as for FNLI. It
            reads every question once an edit.
        classifier_hidden: Width of an encoder from scratch.
        classifier_layers: Blocks of a new encoder.
        classifier_heads: Attention heads of a new encoder.
        dist_heads: Slices of the vector; the closest slice counts.
        scale: :math:`\kappa`; 1 in the authors' code.
        cosine: Cosine distance in place of the squared Euclidean one.
        bounded: Put the vectors through tanh.
        counterfactual: Counterfactual model: ``base`` (a copy of the language model with its first
            blocks only: embeddings, blocks, last norm and head), ``scratch`` (new, random, Llama's
            architecture, or T5's for a language model of two stacks), or the folder of a smaller
            language model of one stack or two with its own tokenizer (T5-small in the paper). With
            two stacks its encoder reads edit and question, and its decoder the answer.
        counterfactual_hidden: Width of one from scratch.
        counterfactual_layers: Its blocks, or those kept with ``base``; of two stacks in each.
        counterfactual_heads: Attention heads of one from scratch.
        objective: ``supervised``, the paper's; or ``unsupervised``, EasyEdit's: the mixture's loss
            on the edit and its divergence from the language model elsewhere, with no loss on the
            classifier, no rephrases and no hard negatives.
        mixing: ``hard`` sends a question to one model; ``soft`` answers with
            :math:`(1-\beta)p_f + \beta p_h`, EasyEdit's way, which needs one vocabulary and answers
            one prompt at a time.
        lr: Adam's learning rate; 1e-5 in the authors' code, for pretrained networks.
        counterfactual_lr: Learning rate of the counterfactual model; ``None``: ``lr``.
        decay_steps: Optimiser steps of the linear decay of learning rates to zero; ``None``:
            constant.
        c_edit: Weight :math:`c_e`; the authors' ``cedit``.
        c_loc: Weight :math:`c_l`; the authors' ``cloc``.
        views: Kinds of questions in scope, drawn with equal probability among those that a request
            has; ``None``: ``rewrite``, ``rephrase``, ``reversed_relation``, ``fact_check``.
        negatives: Pairs out of scope: ``diagonal``, a question with its own edit; ``all``, with
            every edit of the batch; ``batch``, also the questions in scope with the other edits.
            Pairs that are known to be in scope are left out.
        own_probes: Questions out of scope from each request's own probes in a training step.
        other_facts: Such questions from other requests.
        hard_neg_prob: Probability that one of the latter is a near neighbour.
        hard_neg_exclude: Closest neighbours that are left out.
        hard_neg_count: Neighbours behind them to draw from.
        hard_neg_temperature: Temperature of that draw.
        similarity: Where neighbours come from: mean hidden states of the language ``model``, or
            vectors of the untrained ``encoder`` (for a pretrained one).
        any_wording: Store an edit in any wording of its request in training: more variety.
        any_target: Store it with any request's target in training, so that the counterfactual model
            must read the answer instead of remembering it. Views whose answers depend on the target
            then drop out.
        end_answers: Train the counterfactual model to end its text behind the answer, as the
            labels of the paper's T5 do.
        seed: Seed of new weights and of all that is sampled.
        checkpoint: Trained networks: a Lightning checkpoint or a file from ``save_weights``. All
            arguments of the networks then come from the file.

    Note:
        Routing is decided from the prompt's text, once, for forced and generated answers alike.
        The counterfactual model reads plain text, also where the language model is asked through a
        chat template. There, and where it has another tokenizer, its answers are compared as text;
        ``nll`` is then per token of its own, and so are the two sides of ``margin``. An undone edit
        leaves the memory and no trace. A second edit of the same prompt stands for the first while
        it is in force (our choice; the paper has none), but one of another wording does not: the
        more similar one of the two answers. Running text goes to the base model.
    """

    def __init__(
        self,
        classifier: str = "base",
        classifier_kind: ScopeKind = "embedding",
        classifier_hidden: int = 256,
        classifier_layers: int = 2,
        classifier_heads: int = 4,
        dist_heads: int = 1,
        scale: float = 1.0,
        cosine: bool = False,
        bounded: bool = False,
        counterfactual: str = "base",
        counterfactual_hidden: int = 256,
        counterfactual_layers: int = 2,
        counterfactual_heads: int = 4,
        objective: Literal["supervised", "unsupervised"] = "supervised",
        mixing: Mixing = "hard",
        lr: float = 1e-5,
        counterfactual_lr: float | None = None,
        decay_steps: int | None = None,
        c_edit: float = 0.1,
        c_loc: float = 1.0,
        views: list[str] | None = None,
        negatives: Literal["diagonal", "all", "batch"] = "diagonal",
        own_probes: int = 1,
        other_facts: int = 1,
        hard_neg_prob: float = 0.5,
        hard_neg_exclude: int = 25,
        hard_neg_count: int = 100,
        hard_neg_temperature: float = 0.1,
        similarity: Literal["model", "encoder"] = "model",
        any_wording: bool = False,
        any_target: bool = False,
        end_answers: bool = True,
        seed: int = 0,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__(
            classifier=classifier,
            classifier_kind=classifier_kind,
            classifier_hidden=classifier_hidden,
            classifier_layers=classifier_layers,
            classifier_heads=classifier_heads,
            dist_heads=dist_heads,
            scale=scale,
            cosine=cosine,
            bounded=bounded,
            counterfactual=counterfactual,
            counterfactual_hidden=counterfactual_hidden,
            counterfactual_layers=counterfactual_layers,
            counterfactual_heads=counterfactual_heads,
            mixing=mixing,
            seed=seed,
            checkpoint=checkpoint,
        )
        self.save_hyperparameters()
        self.objective = objective
        self.lr = lr
        self.counterfactual_lr = counterfactual_lr
        self.decay_steps = decay_steps
        self.c_edit = c_edit
        self.c_loc = c_loc
        self.views = views
        self.negatives = negatives
        self.own_probes = own_probes
        self.other_facts = other_facts
        self.hard_neg_prob = hard_neg_prob
        self.hard_neg_exclude = hard_neg_exclude
        self.hard_neg_count = hard_neg_count
        self.hard_neg_temperature = hard_neg_temperature
        self.similarity = similarity
        self.any_wording = any_wording
        self.any_target = any_target
        self.end_answers = end_answers
        self._near: tuple[Sequence[EditRequest], Neighbours] | None = None

    def on_bind(self) -> None:
        """Build the networks, or check that existing ones fit; see :meth:`RoutingEditor.on_bind`.

        Raises:
            ConfigError: If a kind of view is unknown, or training mixes two vocabularies.
        """
        super().on_bind()
        if wrong := [kind for kind in self.views or () if kind not in ASPECT_OF_KIND]:
            raise ConfigError(
                f"expected kinds of probes as views, got {wrong[0]!r}; use some of "
                f"{', '.join(ASPECT_OF_KIND)}"
            )
        if self.objective == "unsupervised":
            self.require_one_vocabulary('objective="unsupervised"')
        self._near = None

    # ----------------------------------------------------------------------------------- training

    @property
    def sampler(self) -> ScopeSampler:
        """Sampler of the texts of a training step."""
        own = self.objective == "unsupervised"
        views = ("rewrite",) if own else VIEWS if self.views is None else tuple(self.views)
        hard = 0.0 if own else self.hard_neg_prob
        return ScopeSampler(
            views, self.own_probes, self.other_facts, hard, self.any_wording, self.any_target
        )

    def collate_requests(self, stage: str, requests: Sequence[EditRequest]) -> ScopeCollate:
        """Return the collate function of a loader of this editor.

        Args:
            stage: ``train``, ``val`` or ``test``.
            requests: All requests of the loader; they provide the other facts.
        """
        sampler = self.sampler
        hard = stage == "train" and sampler.other_facts > 0 and sampler.hard_neg_prob > 0
        near = self._neighbours(requests) if hard else None
        return ScopeCollate(sampler, stage, requests, near, self.seed)

    def _neighbours(self, requests: Sequence[EditRequest]) -> Neighbours:
        if self._near is None or self._near[0] is not requests:
            listed = [requests[number] for number in range(len(requests))]
            texts = [request.prompt for request in listed]
            if self.similarity == "model":
                vectors = prompt_vectors(self.language_model, self.prompts, texts)
            else:
                vectors = self._encoder_vectors(texts)
            place = {request.id: number for number, request in enumerate(listed)}
            found = Neighbours(
                vectors, place, self.hard_neg_exclude, self.hard_neg_count,
                self.hard_neg_temperature,
            )  # fmt: skip
            self._near = (requests, found)
        return self._near[1]

    @torch.no_grad()
    def _encoder_vectors(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        # The untrained encoder, so that a resumed training has the same neighbours.
        scope = self.new_scope()
        if scope.kind != "embedding":
            raise ConfigError(
                "similarity: encoder needs vectors, but a cross-attention classifier gives none; "
                "use similarity: model"
            )
        rows = [scope.text.question(text) for text in texts]
        parts = [scope.vectors(rows[start : start + 64]) for start in range(0, len(rows), 64)]
        found = torch.cat(parts)
        return nn.functional.normalize(found - found.mean(0), dim=-1)

    def on_fit_start(self) -> None:
        """Move the language model to the device and put it in eval mode (no dropout)."""
        super().on_fit_start()
        self.language_model.eval()
        self._trained_on = describe_language_model(self.language_model, self.prompts)

    def on_fit_end(self) -> None:
        """Forget vectors of the networks before training."""
        super().on_fit_end()
        self.forget_vectors()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return Adam, with a linear learning-rate decay if :attr:`decay_steps` is set."""
        assert self.scope is not None
        rate = self.lr if self.counterfactual_lr is None else self.counterfactual_lr
        groups: list[dict[str, Any]] = [
            {"params": list(self.scope.parameters())},
            {"params": list(self.other.parameters()), "lr": rate},
        ]
        optimizer = torch.optim.Adam(groups, lr=self.lr)
        if self.decay_steps is None:
            return optimizer
        line = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, self.decay_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": line, "interval": "step"}}

    def training_step(self, batch: ScopeBatch | list[EditRequest], batch_idx: int) -> Tensor | None:
        """Compute the training loss of one step.

        Args:
            batch: Edits with questions in and out of scope, or plain requests.
            batch_idx: Batch index in the epoch.

        Returns:
            The loss; ``None`` (no update) if it is not finite.
        """
        texts = self._texts(batch, batch_idx, "train", self.trainer.train_dataloader)
        terms = self.terms(texts)
        if not torch.isfinite(terms["loss"]):
            log.warning("step %d: the loss is not finite; the step is skipped", self.global_step)
            return None
        self.trained_batches += 1
        for name, value in terms.items():
            self.log(f"train/{name}", value.detach(), prog_bar=True, batch_size=len(texts.edits))
        return terms["loss"]

    def _texts(
        self, batch: ScopeBatch | list[EditRequest], batch_idx: int, stage: str, loader: Any
    ) -> ScopeBatch:
        """Return ready texts as they are; sample them from the plain requests of any loader."""
        if isinstance(batch, ScopeBatch):
            return batch
        others = getattr(loader, "dataset", None)
        if others is None or not hasattr(others, "__len__"):
            raise DataError(
                f"expected a loader of a map-style data set of requests, got "
                f"{type(loader).__name__}; use a DataLoader or an EditDataModule"
            )
        collate = self.collate_requests(stage, others)
        return collate(StepRequests(batch, self.current_epoch, batch_idx))

    def terms(self, texts: ScopeBatch) -> dict[str, Tensor]:
        """Return the training loss and its terms, in nats; see ``training``.

        Args:
            texts: Edits with questions in and out of scope.
        """
        assert self.scope is not None
        own, other = self.prompts, self.other_prompts
        if self.objective == "unsupervised":
            models = self.language_model, self.other
            found = mixture_terms(texts, self.scope, models, (own, other))
            loss = self.c_edit * found["edit_nll"] + self.c_loc * found["locality_kl"]
            return {"loss": loss, **found}
        found = scope_terms(texts, self.scope, self.negatives)
        end = tuple(other.end_tokens(self.other)[:1]) if self.end_answers else ()
        nll = edit_nll(texts, self.other, other, end)
        loss = self.c_edit * nll + self.c_loc * found["scope_bce"]
        return {"loss": loss, "edit_nll": nll, **found}

    # --------------------------------------------------------------------------------- validation

    def validation_step(self, batch: ScopeBatch | list[EditRequest], batch_idx: int) -> None:
        """Evaluate edits of the validation requests; see :meth:`evaluate`."""
        loader = self.trainer.val_dataloaders
        self.evaluate(self._texts(batch, batch_idx, "val", loader), "val")

    def test_step(self, batch: ScopeBatch | list[EditRequest], batch_idx: int) -> None:
        """Evaluate edits of the test requests; see :meth:`evaluate`."""
        loader = self.trainer.test_dataloaders
        self.evaluate(self._texts(batch, batch_idx, "test", loader), "test")

    @torch.no_grad()
    def evaluate(self, texts: ScopeBatch, stage: str) -> None:
        """Log the loss, and the scores of each edit alone, asked through the responder.

        ``reliability/em@tf``, ``generalization/em@tf`` and ``locality/kept@tf`` as an evaluation
        defines them (docs/metrics.md), means over requests.

        Args:
            texts: Edits of one batch with all their questions.
            stage: ``val`` or ``test``, the prefix of the metric names.
        """
        assert self.scope is not None
        base = self.responder_of(ScopeMemory(self.scope))  # nothing is in force
        scores: dict[str, list[float]] = {}
        for request in texts.requests:
            memory = ScopeMemory(self.scope)
            memory.install([stored_delta([request])])
            for name, value in edit_scores(request, self.responder_of(memory), base).items():
                scores.setdefault(name, []).append(value)
        log_evaluation(self, stage, scores, self.terms(texts), len(texts.edits))
