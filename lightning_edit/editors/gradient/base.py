"""Fine-tuning editors: train float32 master copies of some model weights on the requests.

The model itself is never trained: each forward pass runs with the copies in place of the model's
weights (a functional call). Axis names: ``n`` -- requests; ``v`` -- vocabulary.
"""

from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_edit.editors.auto_rate import rate_for
from lightning_edit.editors.base import Editor
from lightning_edit.editors.gradient.descent import AdamDescent, Descent, MeasuredDescent
from lightning_edit.editors.gradient.master_copies import MasterCopies
from lightning_edit.editors.gradient.ordinary_inputs import OrdinaryInputs
from lightning_edit.edits.delta import Delta
from lightning_edit.functional.losses import bag_entropy, bag_nll
from lightning_edit.functional.scores import token_margins
from lightning_edit.inference.answer_rows import AnswerRows
from lightning_edit.inference.answers import answer_logits
from lightning_edit.models.view import ModelView
from lightning_edit.models.weights import Weight, weight
from lightning_edit.types import EditBatch, Encoded

TrainingObjective = Literal["prompt_last", "target_new"]

#: ``lr="auto"``: share of the loss that each step takes from it, to first order. Half and twice as
#: much end at the same weights, within a tenth of what they change of neutral text.
STEP_REACH = 0.2
#: Rate of Adam that is noted beside ``lr="auto"``: it takes so much of the loss in its first step.
ADAM_REACH = 0.025
#: ``threshold="auto"``: a request is learnt when the logit of each answer token exceeds all others
#: by so much, in nats: the distance of logits of 16 to 32 in bfloat16, so no rounding hides it.
MARGIN = 0.125
#: The same with the objective ``prompt_last``, where tokens share a position and cannot all be the
#: first choice: nats per token above the least loss that the answer can have.
LEARNT = 0.3
#: ``norm_constraint="auto"``: steps of Adam that a weight may go from where it was.
STEPS_IN_BOX = 60.0
#: ``steps="auto"``: most epochs; training ends when every request is learnt.
MOST_STEPS = 100
#: Epochs and threshold of ROME's, MEMIT's and EasyEdit's configs, for a rate given as a number.
PUBLISHED_STEPS, PUBLISHED_THRESHOLD = 25, 1e-2


class Step(NamedTuple):
    """One optimiser step of fine-tuning.

    Args:
        loss: Mean loss of the mini-batch before it.
        learnt: Whether there was nothing left to learn, so that no step was made.
    """

    loss: float
    learnt: bool


class RowLosses(NamedTuple):
    """Losses of a mini-batch's rows.

    Args:
        nll: Mean negative log-likelihood of each answer, in nats per token.
        margin: By how much the logit of its least certain token exceeds all others, in nats;
            ``None`` where tokens share a position.
    """

    nll: Float[Tensor, " n"]
    margin: Float[Tensor, " n"] | None


class GradientEditor(Editor, family=True):
    """Family of fine-tuning editors: gradient descent on the answers' negative log-likelihood.

    Args:
        layers: Blocks whose MLP down-projection (weight, and bias where there is one) is trained;
            ``None``: by depth, see ``default_layers``. With two stacks the decoder's.
        steps: Epochs over the batch (25 in ROME's and MEMIT's configs). ``auto``: up to
            :data:`MOST_STEPS` beside a rate by rule, those 25 beside one given as a number.
        lr: Adam's learning rate (5e-4 in those configs). ``auto``: in place of Adam the steepest
            descent, measured by what a step changes on neutral text
            (:class:`~lightning_edit.editors.gradient.descent.MeasuredDescent`), each step as long
            as takes :data:`STEP_REACH` of the loss, to first order. Noted as chosen is the rate at
            which Adam's first step would take :data:`ADAM_REACH`, to start from with numbers.
        weight_decay: Adam's weight decay (0 in those configs).
        norm_constraint: Largest change of any single weight (L∞ norm); ``auto``:
            :data:`STEPS_IN_BOX` times ``lr``, with ``auto`` the noted one; ``None``: no limit.
        objective: ``prompt_last``: all answer tokens are predicted at the prompt's last position,
            as in the authors' code. ``target_new``: each token at its own position (FT-M).
        threshold: A mini-batch with a lower loss makes no step, and an epoch with a lower mean loss
            ends the training (1e-2 in the authors' code). ``auto``: beside a rate by rule a request
            whose answer is the first choice by :data:`MARGIN` (``prompt_last``: whose loss is
            within :data:`LEARNT` of its least) is left out of a step, and training ends when all
            are; beside a number that 1e-2.
        batch_size: Requests per optimiser step (64 in the authors' code).

    Note:
        ``prompt_last`` fits a multi-token answer as a bag of words at one position, so such answers
        are learnt badly; it is the default because published FT-L figures use it.

        ``lr="auto"`` is no published method. Adam moves each weight by about as much, whatever the
        keys of other prompts are, and plain gradients point where all keys are large. FT-M wrote
        twenty facts of SmolLM2 in one batch each way, and of the neighbours 35 % answered as before
        with Adam, 47 % with gradients, 72 % measured on neutral text.
    """

    both_forms: ClassVar[bool] = True
    architectures: ClassVar[tuple[str, ...]] = ("decoder-only", "encoder-decoder")

    def __init__(
        self,
        layers: list[int] | None = None,
        steps: int | Literal["auto"] = "auto",
        lr: float | Literal["auto"] = "auto",
        weight_decay: float = 0.0,
        norm_constraint: float | Literal["auto"] | None = None,
        objective: TrainingObjective = "prompt_last",
        threshold: float | Literal["auto"] = "auto",
        batch_size: int = 64,
    ) -> None:
        super().__init__()
        if (steps != "auto" and steps < 1) or (lr != "auto" and lr <= 0) or batch_size < 1:
            raise ValueError(
                "training needs steps auto or >= 1, lr auto or > 0, and batch_size >= 1, got "
                f"steps={steps}, lr={lr}, batch_size={batch_size}"
            )
        self.layers = layers
        self.steps: int | Literal["auto"] = steps
        self.lr: float | Literal["auto"] = lr
        self.weight_decay = weight_decay
        self.norm_constraint: float | Literal["auto"] | None = norm_constraint
        self.objective = objective
        # A bag of words at the prompt's end would put the end of the answer before it.
        self.ends_answers = objective != "prompt_last"
        self.threshold: float | Literal["auto"] = threshold
        self.batch_size = batch_size

    @property
    def most_steps(self) -> int:
        """Most epochs, as a number."""
        if self.steps != "auto":
            return self.steps
        return MOST_STEPS if self.lr == "auto" else PUBLISHED_STEPS

    @property
    def end_loss(self) -> float | None:
        """Threshold as a number; ``None``: each request has its own."""
        if self.threshold != "auto":
            return self.threshold
        return None if self.lr == "auto" else PUBLISHED_THRESHOLD

    @property
    def edited_layers(self) -> list[int]:
        """The edited layers (block indices) of the bound model."""
        if self.layers is None:
            return self.default_layers(self.view.num_blocks)
        return sorted(self.layers)

    def on_bind(self) -> None:
        """Check that the layers to fine-tune exist."""
        weights = self.trained_weights()
        self._ordinary: OrdinaryInputs | None = None
        if self.lr == "auto":
            self._ordinary = OrdinaryInputs(self.language_model, self.prompts, weights)
        if self.steps == "auto":
            self.chose({"steps": self.most_steps})
        if self.threshold == "auto":
            by_rule = MARGIN if self.objective == "target_new" else LEARNT
            self.chose({"threshold": by_rule if self.end_loss is None else self.end_loss})

    def trained_weights(self) -> list[Weight]:
        """Return the trained weights: each layer's MLP down-projection, and its bias if any."""
        names = dict(self.language_model.named_parameters())
        stems = [self.view.down_projection(layer) for layer in self.edited_layers]
        wanted = [f"{stem}.{leaf}" for stem in stems for leaf in ("weight", "bias")]
        return [weight(self.language_model, name) for name in wanted if name in names]

    def edit(self, batch: EditBatch) -> Delta:
        """Fine-tune copies of the weights on the batch.

        Args:
            batch: The requests.

        Returns:
            Dense updates, trained minus original weights.
        """
        with torch.inference_mode(False), torch.enable_grad(), self.stage("search"):
            return self._train(batch)

    def _train(self, batch: EditBatch) -> Delta:
        copies = MasterCopies(self.trained_weights())
        losses = self.descend(copies, batch)
        info = {"loss": losses, "steps": len(losses)} | self.chosen_info()
        return Delta(batch.ids, copies.updates(), info=info)

    def descend(self, copies: MasterCopies, batch: EditBatch) -> list[float]:
        """Train the copies, epoch after epoch over the batch.

        Args:
            copies: Master copies of the trained weights.
            batch: The requests.

        Returns:
            Mean loss of each epoch.
        """
        descent = self.descent(copies, batch.encoded[: self.batch_size])
        losses: list[float] = []
        for step in range(self.most_steps):
            self.progress(step, self.most_steps)
            parts = mini_batches(batch.encoded, self.batch_size)
            each = [(self.step(copies, descent, part), len(part)) for part in parts]
            losses.append(mean_loss(each))
            if self.learnt(losses[-1], [step for step, _ in each]):
                break
        self.progress(self.most_steps, self.most_steps)
        return losses

    def descent(self, copies: MasterCopies, first: Sequence[Encoded]) -> Descent:
        """Return what makes the steps of a batch, and set the bound on single weights.

        Args:
            copies: Master copies of the trained weights.
            first: The requests that ``auto`` looks at.
        """
        rate = self.lr if self.lr != "auto" else self._adam_rate(copies, first)
        if self.norm_constraint == "auto":
            copies.limit = STEPS_IN_BOX * rate
            self.chose({"norm_constraint": copies.limit})
        else:
            copies.limit = self.norm_constraint
        if self._ordinary is None:
            return AdamDescent(copies, rate, self.weight_decay)
        return MeasuredDescent(copies, self._ordinary, STEP_REACH, self.weight_decay)

    def _adam_rate(self, copies: MasterCopies, requests: Sequence[Encoded]) -> float:
        (part,) = mini_batches(requests, len(requests))
        loss = self.loss(part, copies.values()).nll.mean()
        return rate_for(self, loss, copies.master, ADAM_REACH)

    def step(self, copies: MasterCopies, descent: Descent, part: Sequence[Encoded]) -> Step:
        """Make one step on a mini-batch, or none where its requests are learnt.

        Args:
            copies: Master copies of the trained weights.
            descent: What makes it.
            part: The mini-batch.
        """
        losses = self.loss(part, copies.values())
        found = losses.nll.detach()
        excess, loss = found - self.least(part).to(found), losses.nll.mean()
        if self.end_loss is None:
            # What is not a number is not learnt: its update is refused.
            still = ~(excess < LEARNT if losses.margin is None else losses.margin > MARGIN)
            still |= ~found.isfinite()  # the margin of an infinite logit is infinite
            done, loss, excess = not bool(still.any()), losses.nll[still].mean(), excess[still]
        else:
            done = loss.item() < self.end_loss
        if done:
            return Step(float(found.mean()), True)
        descent.take(torch.autograd.grad(loss, copies.master), float(excess.mean()))
        copies.clip()
        return Step(float(found.mean()), False)

    def learnt(self, loss: float, steps: Sequence[Step]) -> bool:
        """Return whether training ends after an epoch.

        Args:
            loss: Mean loss of the epoch.
            steps: Its steps.
        """
        if self.end_loss is None:
            return all(one.learnt for one in steps)
        return loss < self.end_loss

    def least(self, part: Sequence[Encoded]) -> Float[Tensor, " n"]:
        """Return the smallest loss that each request can have.

        Args:
            part: Token ids of the requests.
        """
        if self.objective != "prompt_last":
            return torch.zeros(len(part))
        return torch.tensor([bag_entropy(one.target_ids) for one in part])

    def loss(self, encoded: Sequence[Encoded], values: dict[str, Tensor]) -> RowLosses:
        """Return the loss per request with replaced weights (a functional call of the model).

        Args:
            encoded: Token ids of the requests.
            values: The replacing weights, by parameter name.
        """
        model = self.language_model
        at_prompt = self.objective == "prompt_last"
        rows = AnswerRows.of(
            model,
            [
                (item.prompt_ids, () if at_prompt else self.prompts.labels(model, item.target_ids))
                for item in encoded
            ],
        )
        logits = answer_logits(model, rows, values)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if at_prompt:
            return RowLosses(bag_nll(logits, [item.target_ids for item in encoded]), None)
        nll = torch.nn.functional.cross_entropy(logits, rows.targets, reduction="none")
        margins = rows.least_per_row(token_margins(logits.detach(), rows.targets))
        return RowLosses(rows.per_row(nll), margins)

    @classmethod
    def memory_bytes(cls, view: ModelView, layers: list[int]) -> int:
        """Estimate extra memory: master copy, gradient and Adam's two moments, in float32."""
        return 4 * 4 * len(layers) * view.intermediate_size * view.hidden_size


def mean_loss(steps: Sequence[tuple[Step, int]]) -> float:
    """Return the mean loss of an epoch.

    Args:
        steps: Its steps, each with the number of its rows.
    """
    return sum(one.loss * size for one, size in steps) / sum(size for _, size in steps)


def mini_batches(items: Sequence[Encoded], size: int) -> Iterator[list[Encoded]]:
    """Yield the rows of a loss: requests in mini-batches, each request in every form.

    Args:
        items: Token ids of the requests.
        size: Requests per mini-batch.
    """
    for start in range(0, len(items), size):
        yield [row for item in items[start : start + size] for row in item.forms]
