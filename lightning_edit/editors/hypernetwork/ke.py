"""KE (KnowledgeEditor): De Cao, Aziz, Titov, Editing Factual Knowledge in Language Models, 2021.

EMNLP 2021, arXiv 2104.08164. Axis names: ``b`` -- requests; ``a`` -- answer tokens; ``v`` --
vocabulary.
"""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, cast

import torch
from jaxtyping import Float, Int
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torchmetrics import MeanMetric
from transformers.pytorch_utils import Conv1D

from lightning_edit.editors.hypernetwork.base import HypernetworkEditor
from lightning_edit.editors.hypernetwork.dual_ascent import (
    Constraint,
    Lagrangian,
    centred_rmsprop,
)
from lightning_edit.editors.hypernetwork.functional_weights import patched_parameters
from lightning_edit.editors.hypernetwork.meta_batch import MetaBatch
from lightning_edit.editors.hypernetwork.outer_loss import anywhere
from lightning_edit.editors.one_by_one import concat_low_rank
from lightning_edit.edits.delta import Delta, LowRank
from lightning_edit.functional.conditioned_shift import (
    ShiftHead,
    TextCondition,
    label_smoothed_nll,
    linear_warmup_decay,
    low_rank_shift,
    root_mean_square,
)
from lightning_edit.functional.hypernet import drift_kl, informative_rows
from lightning_edit.inference.answer_rows import AnswerRow
from lightning_edit.inference.answers import answer_logits
from lightning_edit.inference.model_responder import ModelResponder
from lightning_edit.inference.responder import Question
from lightning_edit.inference.token_factors import token_factors
from lightning_edit.models.sites import StackChoice
from lightning_edit.models.view import ModelView
from lightning_edit.types import EditBatch, EditRequest

log = logging.getLogger(__name__)

Divergence = Literal["kl", "lp", "both"]


class KE(HypernetworkEditor):
    r"""KnowledgeEditor: a hypernetwork reads the edit as text and gates the fine-tuning gradient.

    A bidirectional LSTM reads ``"{old answer} >> {new answer} || {prompt}"``. From its states one
    head per edited weight predicts a mask of rank one for the gradient of the edit's loss, a term
    of rank one to add, and a gate. It is trained so that one such update gives the new answer on
    the edit and a rephrase, while the KL divergence on other facts stays below a margin: the
    constraint's multiplier is learnt by dual ascent, and the margin shrinks while edits succeed.

    Args:
        hidden: Width of the LSTM in each direction, and inside every head (128 in the authors'
            training script).
        condition: Width of the condition vector (1024 there).
        max_scale: Largest value of the gate (1 there).
        rounds: Times that the same update is added at most, until the greedy answer is the target
            (the authors' loop has up to 5). 1: once, without looking.
        loss: ``constrained``, as published; ``plain``: ``c_edit`` · NLL + ``c_loc`` · KL with Adam,
            which the ports of MEND and EasyEdit train under the name of KE.
        divergences: What is constrained: ``kl``, the size of the update (``lp``), or ``both``.
        smoothing: Label smoothing of the edit's loss.
        margin_kl: KL margin at the start (1e-3 for question answering, 1e-1 for fact checking).
        margin_kl_floor: Smallest KL margin (1e-5 and 1e-3).
        margin_lp: Margin of the update's root mean square at the start.
        margin_lp_floor: Its smallest value.
        anneal: Factor of the margins after a validation with a success above ``anneal_above``.
        anneal_above: That success, the share of edits that the edited model answers right.
        layers: Blocks whose attention and MLP matrices are edited; ``None``: all, as published.
        stack: Stacks that are edited where a model has two (T5, BART): ``both``, ``encoder`` or
            ``decoder``. ``layers`` are then blocks of each.
        modules: Dotted names of linear layers to edit, in place of ``layers`` and ``stack``.
        lr: Learning rate of centred RMSprop (3e-4), or of Adam with the plain loss (1e-5 in the
            ports).
        lr_alpha: Learning rate of the multipliers.
        warmup_steps: Optimiser steps of a linear warm-up from 0.
        decay_steps: Optimiser steps until the learning rates have decayed to zero (200,000 in the
            authors' script); ``None``: constant.
        c_edit: Weight of the edit's loss, in the plain loss only.
        c_loc: Weight of the KL divergence, in the plain loss only.
        own_probes: Locality prompts from each request's own probes in a training step.
        other_facts: Locality prompts from other requests in a training step; all but one of a batch
            of 64 in the authors' script.
        any_wording: Use any wording of a request as the edit of a training step.
        any_target: Give an edit of a training step the target of another request, of the same
            relation where one is met: a network that sees few facts learns to write any answer.
        rows_per_pass: Gradient checkpointing, for large models: most rows in a pass of the language
            model. The activations of one pass at a time are in memory, and the backward pass
            computes them again. ``None``: those of all rows are kept.
        seed: Seed of the network's initialisation and of the sampled rephrases and locality
            prompts.
        checkpoint: Trained parameters: a Lightning checkpoint or a file from ``save_weights``. The
            edited layers and the network's sizes then come from the file.

    Note:
        Single edits only, by design: requests of a batch are written one by one, and nothing keeps
        a sequence of edits from drifting away from what the network was trained on. The old answer
        in the condition is ``old_target``; where a request has none, it is what the model says.
        Softmax over the rows makes the mask small in wide layers, so that there the added term does
        most of the work. Differences from the authors' code: embeddings are copied, so that
        training never changes the language model; rows of a weight are its outputs in every model
        (in the ports those of the stored matrix, which for GPT-2 are its inputs); the update is
        compared by teacher forcing, not by beam search. On BART, as published, and on T5 the
        matrices of both stacks are edited, those of cross-attention too.
    """

    structure = ("hidden", "condition", "max_scale", "divergences", "vocabulary", "width")
    batched: ClassVar[bool] = False

    def __init__(
        self,
        hidden: int = 128,
        condition: int = 1024,
        max_scale: float = 1.0,
        rounds: int = 1,
        loss: Literal["constrained", "plain"] = "constrained",
        divergences: Divergence = "kl",
        smoothing: float = 0.1,
        margin_kl: float = 1e-3,
        margin_kl_floor: float = 1e-5,
        margin_lp: float = 1e-3,
        margin_lp_floor: float = 1e-7,
        anneal: float = 0.8,
        anneal_above: float = 0.9,
        layers: list[int] | None = None,
        stack: StackChoice = "both",
        modules: list[str] | None = None,
        lr: float = 3e-4,
        lr_alpha: float = 1e-1,
        warmup_steps: int = 1000,
        decay_steps: int | None = None,
        c_edit: float = 0.1,
        c_loc: float = 1.0,
        own_probes: int = 0,
        other_facts: int = 15,
        any_wording: bool = False,
        any_target: bool = False,
        rows_per_pass: int | None = None,
        seed: int = 0,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__(
            layers=layers,
            stack=stack,
            modules=modules,
            lr=lr,
            decay_steps=decay_steps,
            c_edit=c_edit,
            c_loc=c_loc,
            own_probes=own_probes,
            other_facts=other_facts,
            any_wording=any_wording,
            any_target=any_target,
            together=False,
            rows_per_pass=rows_per_pass,
            seed=seed,
            checkpoint=checkpoint,
        )
        if rounds < 1:
            raise ValueError(f"rounds must be 1 or more, got {rounds}; 5 in the authors' code")
        self.save_hyperparameters()
        self.hidden = hidden
        self.condition = condition
        self.max_scale = max_scale
        self.rounds = rounds
        self.loss = loss
        self.divergences = divergences
        self.smoothing = smoothing
        self.margin_kl, self.margin_kl_floor = margin_kl, margin_kl_floor
        self.margin_lp, self.margin_lp_floor = margin_lp, margin_lp_floor
        self.anneal, self.anneal_above = anneal, anneal_above
        self.lr_alpha = lr_alpha
        self.warmup_steps = warmup_steps
        self.vocabulary = self.width = 0
        self.reader: TextCondition | None = None
        self.heads = nn.ModuleList()
        self.constraints = Lagrangian({})
        self.success = MeanMetric()
        self.automatic_optimization = loss == "plain"
        self._size: Tensor | None = None  # of the updates that were proposed last

    # ------------------------------------------------------------------------------- the network

    @classmethod
    def default_layers(cls, num_blocks: int) -> list[int]:
        """Return the default layers, all blocks."""
        return list(range(num_blocks))

    def edited_modules(self) -> list[str]:
        """Return the names of the edited layers: by default every linear layer of the blocks."""
        if self.modules_to_edit is not None:
            return self.modules_to_edit
        return [
            f"{block.name}.{name}"
            for block in self.edited_blocks()
            for name, module in block.module.named_modules()
            if isinstance(module, nn.Linear | Conv1D)
        ]

    def build(self) -> None:
        """Build the LSTM on a copy of the model's token embeddings, heads, and the constraints."""
        if self._bound is not None:
            table = self.view.embeddings.get_parameter("weight").detach()
            self.vocabulary, self.width = table.shape
        else:  # values come from a checkpoint
            table = torch.zeros(self.vocabulary, self.width)
        self.reader = TextCondition(table.cpu(), self.hidden, self.condition).to(self.device)
        self.heads = nn.ModuleList(
            ShiftHead(self.condition, self.hidden, *handle.shape) for handle in self.weights
        ).to(self.device)
        named = {
            "kl": Constraint(self.margin_kl, self.margin_kl_floor),
            "lp": Constraint(self.margin_lp, self.margin_lp_floor),
        }
        chosen = ("kl", "lp") if self.divergences == "both" else (self.divergences,)
        self.constraints = Lagrangian({name: named[name] for name in chosen}).to(self.device)
        # The plain loss has none; DDP waits for the gradient of every parameter that wants one.
        self.constraints.requires_grad_(self.loss != "plain")

    def condition_texts(self, batch: EditBatch) -> list[str]:
        """Return what the LSTM reads of each request: old answer, new answer, prompt.

        Args:
            batch: The requests.
        """
        asked = [request for request in batch.requests if not request.old_target]
        told = dict(zip((request.id for request in asked), self._answers(asked), strict=True))
        return [
            f"{request.old_target or told[request.id]} >> {request.target} || {request.prompt}"
            for request in batch.requests
        ]

    def _answers(self, requests: Sequence[EditRequest]) -> list[str]:
        """Return what the language model says now, for requests that name no old answer."""
        if not requests:
            return []
        questions = [Question(request.prompt, 8, request.separator) for request in requests]
        with torch.no_grad():
            texts = ModelResponder(self.language_model, self.prompts).generate_until(
                questions, stop=("\n", ".")
            )
        return [text.strip() for text in texts]

    def propose(self, batch: EditBatch, learn: bool = False) -> Delta:
        """Predict the update of a batch: the sum of the updates of its requests."""
        return _joined(batch, self.propose_each(batch, learn))

    def propose_each(self, batch: EditBatch, learn: bool = False) -> list[Delta]:
        """Predict one update per request, from one backward pass for all."""
        if self.reader is None:
            raise RuntimeError("the network is not built; bind the editor to a language model")
        rows = self.edit_rows(batch)
        model = self.language_model
        modules = [handle.name.removesuffix(".weight") for handle in self.weights]
        # Gradients of the loss without label smoothing; they are constants.
        loss, factors = token_factors(
            model, rows, modules, model.device, each=True, rows_per_pass=self.rows_per_pass
        )
        texts = [
            torch.tensor(self.tokenizer(text, verbose=False)["input_ids"], device=self.device)
            for text in self.condition_texts(batch)
        ]
        lengths = torch.tensor([len(text) for text in texts])
        updates: list[dict[str, LowRank]] = [{} for _ in texts]
        with torch.autocast(self.device.type, enabled=False):
            condition = self.reader(pad_sequence(texts, batch_first=True), lengths)
            for module, head in zip(modules, self.heads, strict=True):
                inputs, gradients = (part.to(condition) for part in factors[module])
                keep = informative_rows(inputs, gradients)
                shift = head(condition)
                for number, update in enumerate(updates):
                    own = type(shift)(*(part[number : number + 1] for part in shift))
                    used = keep[number]
                    left, right = low_rank_shift(
                        own, gradients[number][used], inputs[number][used], self.max_scale
                    )
                    update[f"{module}.weight"] = LowRank(left, right)
        if "lp" in self.constraints:
            self._size = torch.stack([_size(update) for update in updates]).mean()
        return [
            Delta((name,), update, info={"loss_before": loss})
            for name, update in zip(batch.ids, updates, strict=True)
        ]

    # ----------------------------------------------------------------------------------- editing

    @torch.no_grad()
    def edit(self, batch: EditBatch) -> Delta:
        """Predict the update of a batch, each request's added up to :attr:`rounds` times."""
        return _joined(batch, self.edit_independent(batch))

    @torch.no_grad()
    def edit_independent(self, batch: EditBatch) -> list[Delta]:
        """Predict one independent update per request, each added up to :attr:`rounds` times."""
        self._warn_untrained()
        found = self.propose_each(batch)
        if self.rounds == 1:
            return found
        parts = zip(found, batch.split(), strict=True)
        return [self._repeated(delta, part) for delta, part in parts]

    def _repeated(self, delta: Delta, part: EditBatch) -> Delta:
        """Add an update again until the greedy answer begins with the target."""
        encoded = part.encoded[0]
        rows = self.rows([(0, (encoded.prompt_ids, encoded.target_ids))])
        for times in range(1, self.rounds + 1):
            weights = {
                name: LowRank(times * update.left, update.right)
                for name, update in delta.weights.items()
                if isinstance(update, LowRank)
            }
            repeated = Delta(delta.request_ids, weights, info={**delta.info, "rounds": times})
            if times == self.rounds:
                break
            values = patched_parameters(self.weights, repeated)
            verdicts = rows.verdicts(answer_logits(self.language_model, rows, values))
            if bool(verdicts.right.all()):
                break
        return repeated

    # ---------------------------------------------------------------------------------- training

    def training_step(self, batch: MetaBatch | list[EditRequest], batch_idx: int) -> Tensor | None:
        """Make one optimiser step on the Lagrangian, and one up for its multipliers.

        Args:
            batch: Edits of one step with their rephrases and locality prompts, or plain requests.
            batch_idx: Batch index in the epoch.

        Returns:
            The plain loss, for Lightning's own optimisation; ``None`` for the constrained one.
        """
        examples = self._meta_batch(batch, batch_idx, "train", self.trainer.train_dataloader)
        if self.loss == "plain":
            return super().training_step(examples, batch_idx)
        own = tuple(enumerate(self.edit_rows(examples.inner)))
        rephrased = tuple(row for row in self.learnt(examples.outer) if row not in own)
        locality = self.learnt(examples.locality)
        padded, after = self.logits_after(examples.inner, own + rephrased + locality, learn=True)
        edited = padded.rows < len(own) + len(rephrased)
        targets = padded.targets[edited]
        terms = self.terms(after[edited], targets, after[~edited], locality)
        # Lightning refuses a step that one process skips in its own optimisation only.
        if anywhere(not torch.isfinite(terms["loss"]), self.device):
            log.warning("step %d: the loss is not finite; the step is skipped", self.global_step)
            return None
        network, multipliers = cast("list[LightningOptimizer]", self.optimizers())
        network.zero_grad()
        multipliers.zero_grad()
        self.manual_backward(terms["loss"])
        self.constraints.before_step()
        network.step()
        # Lightning counts the steps of its own optimisers, and one batch is one step.
        multipliers.optimizer.step()
        self.constraints.after_step()
        for schedule in cast("list[Any]", self.lr_schedulers()):
            schedule.step()
        self.trained_batches += 1
        for name, value in {**terms, **self.constraints.state()}.items():
            size = len(examples.inner)
            self.log(f"train/{name}", value.detach(), prog_bar=name in terms, batch_size=size)
        return None

    def terms(
        self,
        outer: Float[Tensor, "a v"],
        targets: Int[Tensor, " a"],
        after: Float[Tensor, "a2 v"],
        locality: Sequence[tuple[int, AnswerRow]],
    ) -> dict[str, Tensor]:
        """Return the training loss and its terms, in nats.

        Args:
            outer: Logits of the edited model that should predict ``targets``.
            targets: Tokens of the new answers.
            after: Logits of the edited model at the answers of the locality prompts.
            locality: Those prompts and answers.

        Returns:
            ``loss`` (the Lagrangian, or the plain loss), ``edit_nll`` (smoothed), ``locality_kl``.
        """
        if self.loss == "plain":
            return super().terms(outer, targets, after, locality)
        nll = label_smoothed_nll(outer.float(), targets, self.smoothing)
        kl = drift_kl(self.base_logits(locality), after) if locality else nll.new_zeros(())
        found = {"edit_nll": nll, "locality_kl": kl}
        loss = nll + self.constraints.term("kl", kl)
        if self._size is not None:
            found["update_size"] = self._size
            loss = loss + self.constraints.term("lp", self._size)
        return {"loss": loss, **found}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the network's parameters, without the multipliers."""
        named = self.named_parameters()
        return [{"params": [one for name, one in named if not name.startswith("constraints.")]}]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return centred RMSprop of the network and of the multipliers; Adam for the plain loss."""
        if self.loss == "plain":
            return super().configure_optimizers()
        (group,) = self.parameter_groups()
        factor = partial(linear_warmup_decay, warmup=self.warmup_steps, total=self.decay_steps)
        optimizers: list[torch.optim.Optimizer] = [
            centred_rmsprop(group["params"], self.lr),
            centred_rmsprop(list(self.constraints.parameters()), self.lr_alpha),
        ]
        return optimizers, [torch.optim.lr_scheduler.LambdaLR(one, factor) for one in optimizers]

    def on_evaluated(self, stage: str, scores: Mapping[str, Sequence[float]]) -> None:
        """Collect the success of validation edits, for the margins.

        Args:
            stage: ``val`` or ``test``.
            scores: Scores of each request of a batch.
        """
        if stage == "val":
            self.success.update(torch.tensor(scores["reliability/em@tf"]))

    def on_validation_epoch_end(self) -> None:
        """Shrink the margins, if the edits of a validation inside a training succeed."""
        training = self.trainer.state.fn == "fit"
        seen = training and not self.trainer.sanity_checking and self.success.update_called
        if seen and float(self.success.compute()) > self.anneal_above:
            self.constraints.anneal(self.anneal)
        with torch.inference_mode(False):  # else its states cannot be used in a later training
            self.success.reset()

    @classmethod
    def memory_bytes(cls, view: ModelView, layers: list[int]) -> int:
        """Estimate extra memory: embeddings, and a head of the default size for each weight."""
        table = view.embeddings.get_parameter("weight").numel()
        linear = [
            module
            for block in (*map(view.block, layers), *view.encoder_blocks)
            for module in block.module.modules()
            if isinstance(module, nn.Linear | Conv1D)
        ]
        heads = sum(1024 * 128 + 128 * (2 * sum(module.weight.shape) + 1) for module in linear)
        return 4 * (table + heads)


def _joined(batch: EditBatch, each: Sequence[Delta]) -> Delta:
    """Return the sum of updates of single requests."""
    weights: dict[str, LowRank] = {}
    for delta in each:
        for name, update in delta.weights.items():
            weights[name] = concat_low_rank(weights.get(name), cast("LowRank", update))
    return Delta(batch.ids, weights, info=dict(each[0].info))


def _size(update: Mapping[str, LowRank]) -> Float[Tensor, ""]:
    """Return the mean over matrices of the root mean square of their update."""
    sizes = [root_mean_square(one.left, one.right) for one in update.values()]
    return torch.stack(sizes).mean()
