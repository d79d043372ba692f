"""LTI: Zhang et al., Uncovering Overfitting in Large Language Model Editing, ICLR 2025.

arXiv 2410.07819. Axis names: ``r`` -- texts; ``m`` -- positions with logits; ``a`` -- those of them
that predict an answer token; ``v`` -- vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import compress
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_edit.editors.base import Editor
from lightning_edit.editors.locate.base import LocateThenEdit
from lightning_edit.editors.locate.prompts import essence_texts, rewriting_texts
from lightning_edit.editors.locate.search_objective import EarlyStopping
from lightning_edit.editors.locate.target_search import Loss
from lightning_edit.editors.locate.targets import Targets
from lightning_edit.editors.one_by_one import edit_one_by_one
from lightning_edit.editors.wrappers.base import WrappedEditor
from lightning_edit.edits.delta import Delta
from lightning_edit.exceptions import ConfigError
from lightning_edit.functional.losses import drift, mean_by
from lightning_edit.inference.answer_pass import logits_at, wide
from lightning_edit.inference.answer_rows import AnswerRows
from lightning_edit.inference.hooks import capture
from lightning_edit.inference.suffix.forward import SuffixForward
from lightning_edit.inference.tokenized_text import TokenizedText
from lightning_edit.models.prompt_format import render_plain
from lightning_edit.types import EditBatch


@dataclass(frozen=True)
class _Reference:
    """Reference log-probabilities of the unedited model with the facts in context, for one pass.

    Args:
        texts: The texts, without the facts in front.
        last: Log-probabilities at the answer tokens, text after text, then at the end of the texts
            without an answer.
        middle: Log-probabilities decoded from the middle layer at the subjects (logit lens).
        line_request: Request index of every row of ``last``, in order of appearance.
        text_request: Request index of every text.
        targets: The answer tokens.
    """

    texts: Sequence[TokenizedText]
    last: Float[Tensor, "m v"]
    middle: Float[Tensor, "r v"]
    line_request: Int[Tensor, " m"]
    text_request: Int[Tensor, " r"]
    targets: Int[Tensor, " a"]

    @classmethod
    def of(cls, texts: Sequence[TokenizedText], last: Tensor, middle: Tensor) -> "_Reference":
        """Build a reference, with the requests numbered; arguments as in the class."""
        numbers = {request: i for i, request in enumerate(dict.fromkeys(t.request for t in texts))}
        requests = [numbers[text.request] for text in texts]
        tensor = partial(torch.tensor, dtype=torch.long, device=last.device)
        lines = [requests[row] for row in _head_rows(texts)]
        targets = [token for text in texts for token in text.answer]
        return cls(texts, last, middle, tensor(lines), tensor(requests), tensor(targets))

    @property
    def count(self) -> int:
        """The number of requests."""
        return int(self.text_request[-1]) + 1

    def select(self, texts: Sequence[TokenizedText]) -> "_Reference":
        """Select the rows of the remaining requests, given their texts."""
        left = {text.request for text in texts}
        stays = [text.request in left for text in self.texts]
        rows = torch.tensor(stays, device=self.last.device)
        lines = rows[torch.tensor(_head_rows(self.texts), device=rows.device)]
        return self.of(list(compress(self.texts, stays)), self.last[lines], self.middle[rows])


def _head_rows(texts: Sequence[TokenizedText]) -> list[int]:
    """Return the text index of each logits position, in the order of the target search."""
    answers = [row for row, text in enumerate(texts) for _ in text.answer]
    return answers + [row for row, text in enumerate(texts) if text.watch is not None]


class LTI(WrappedEditor):
    r"""Learn the Inference: target search distilled from the model with the new fact in context.

    A host's search makes the new answer likely everywhere. Here the edited model must also match,
    at a middle layer and at its output, the unedited model whose prompt is prefixed with "Imagine
    that" and the new fact:
    :math:`J = a\,\mathrm{NLL} + b\,\mathrm{KL}_\text{last} + c\,\mathrm{KL}_\text{mid}` plus the
    host's weight decay. Keys and solve are the host's.

    Args:
        editor: The host, a locate-then-edit method; ``None``: MEMIT. Its steps, learning rate,
            clamp, threshold and weight decay also apply to this search.
        nll: a (0.125 in MEMIT-LTI's configs for GPT-2 XL and Llama 2).
        last: b (0.0425 there for GPT-2 XL).
        middle: c (0.0525 there for GPT-2 XL).
        middle_layer: Block whose output is compared; ``None``: at six tenths of the depth, above
            the edited ones (30 of 48 for GPT-2 XL). It lies below the last block, whose predictions
            are compared anyway.

    Note:
        The reference is only as good as the model's reading of a fact in its prompt. The embedded
        model ignores it (the fact's answer has a mean probability of 0.007), so that the two
        constraints pull the edit back: of 100 facts in one batch it writes 43, MEMIT alone 94.

        The authors' code reads the reference at the positions of the texts without "Imagine that
        …", which is too early; here they are shifted, as the paper intends.
    """

    def __init__(
        self,
        editor: Editor | None = None,
        nll: float = 0.125,
        last: float = 0.0425,
        middle: float = 0.0525,
        middle_layer: int | None = None,
    ) -> None:
        super().__init__(editor)
        host = self.editor
        if not isinstance(host, LocateThenEdit) or host.target_search.site == "attention+mlp":
            raise ValueError(
                "LTI replaces the target search of a locate-then-edit method with one vector a "
                f"request, such as MEMIT or ROME; got {type(host).__name__}"
            )
        self.nll = nll
        self.last = last
        self.middle = middle
        self.middle_layer = middle_layer

    @property
    def host(self) -> LocateThenEdit:
        """The host editor, typed as a locate-then-edit method."""
        return cast("LocateThenEdit", self.editor)

    @property
    def compared_layer(self) -> int:
        """The middle layer (block index) whose output is compared."""
        if self.middle_layer is not None:
            return self.middle_layer
        edited, top = self.host.edited_layers[-1], self.view.num_blocks - 1
        return max(edited, min(top - 1, max(edited + 1, round(0.6 * top))))

    def on_bind(self) -> None:
        """Bind the host, and validate the middle layer.

        Raises:
            ConfigError: If edits cannot reach that layer, or it is the last one.
        """
        super().on_bind()
        edited = self.host.edited_layers[-1]
        # The last block's output at a subject is not computed, unless that block is edited.
        highest = max(edited, self.view.num_blocks - 2)
        if not edited <= self.compared_layer <= highest:
            raise ConfigError(
                "LTI compares a layer that edits reach, below the last block: expected "
                f"`middle_layer` from {edited} to {highest}, got {self.middle_layer}"
            )

    def edit(self, batch: EditBatch) -> Delta:
        """Compute the update: LTI's target search, then the host's solve.

        Args:
            batch: Requests that name their subjects.
        """
        if not self.batched and len(batch) > 1:
            delta = edit_one_by_one(self, batch, self._search_and_write)
        else:
            delta = self._search_and_write(batch)
        self.host.effect_warnings.check(self._name, [delta], self.host.missed_advice())
        return delta

    def _search_and_write(self, batch: EditBatch) -> Delta:
        with torch.inference_mode(False), torch.enable_grad():
            return self.host.write(batch, self.search(batch))

    def edit_independent(self, batch: EditBatch) -> list[Delta]:
        """Compute independent single-edit updates, with one batched target search for all.

        Args:
            batch: Requests that name their subjects.
        """
        with torch.inference_mode(False), torch.enable_grad():
            targets = self.search(batch)
            parts = enumerate(batch.split())
            deltas = [self.host.write(part, targets.only(number)) for number, part in parts]
        self.host.effect_warnings.check(self._name, deltas, self.host.missed_advice())
        return deltas

    # -------------------------------------------------------------------------------------- search

    def search(self, batch: EditBatch) -> Targets:
        """Search the target vector of every request on the current model.

        Args:
            batch: Requests that name their subjects.
        """
        self.subject_positions(batch)
        host = self.host
        texts = rewriting_texts(self.prompts, batch, host.templates)
        essence = essence_texts(self.prompts, batch, "prompt_end")
        in_context = dict(zip(texts, self._premise_texts(batch), strict=True)) | {
            text: text for text in essence
        }
        # The constraints on the reference replace the host's KL divergence.
        objective = replace(host.objective, kl_factor=0.0, early_stopping=EarlyStopping())
        joint = sorted([*texts, *essence], key=lambda text: text.request)
        with (
            self.stage("search"),
            capture(self.language_model, {self._middle_block: "output"}) as seen,
        ):
            return host.search_texts(
                joint,
                objective,
                lambda group: self._distillation_loss(self._run_reference(group, in_context), seen),
            )

    def _distillation_loss(self, reference: _Reference, seen: Mapping[str, Tensor]) -> Loss:
        """Return the distillation loss of a pass; it follows the requests that leave the search.

        Args:
            reference: The log-probabilities to match.
            seen: Holds the middle layer's output after every pass.
        """

        def loss(suffix: SuffixForward, texts: Sequence[TokenizedText], logits: Tensor) -> Tensor:
            nonlocal reference
            if len(texts) < len(reference.texts):
                reference = reference.select(texts)
            count, lines = reference.count, reference.line_request
            log_probs = logits.log_softmax(-1)
            # All texts of a request have one answer: the mean over tokens equals that over texts.
            targets = reference.targets[:, None]
            answers = log_probs[: len(targets)].gather(1, targets).squeeze(1)
            last = drift(log_probs, reference.last)
            decoded = self._logit_lens(suffix.at_subject(seen[self._middle_block])).log_softmax(-1)
            middle = drift(decoded, reference.middle)
            return (
                self.nll * mean_by(-answers, lines[: len(answers)], count)
                + self.last * mean_by(last, lines, count)
                + self.middle * mean_by(middle, reference.text_request, count)
            )

        return loss

    def _premise_texts(self, batch: EditBatch) -> list[TokenizedText]:
        """Tokenise the in-context texts: "Imagine that" and the new fact before every template."""
        texts = []
        for part in batch.split():
            (request,) = part.requests
            fact = render_plain(request.prompt, request.target, request.separator).text
            premise = f"Imagine that {fact}\n"
            premise = premise.replace("{", " ").replace("}", " ")
            templates = [premise + template for template in self.host.templates]
            texts += rewriting_texts(self.prompts, part, templates)
        return texts

    @torch.no_grad()
    def _run_reference(
        self, texts: Sequence[TokenizedText], in_context: Mapping[TokenizedText, TokenizedText]
    ) -> _Reference:
        """Run the current model on the in-context texts for the reference log-probabilities."""
        stand_ins = [in_context[text] for text in texts]
        pairs = [
            (text.ids[: len(text.ids) + 1 - len(text.answer)], text.answer)
            if text.answer
            else (text.ids, ())
            for text in stand_ins
        ]
        device = self.view.embeddings.get_parameter("weight").device
        rows = AnswerRows.pad(pairs, device)
        model, places = self.language_model, (rows.rows, rows.positions)
        inputs = {"input_ids": rows.ids, "attention_mask": rows.mask.long()}
        with capture(model, {self._middle_block: "output"}) as seen:
            logits = wide(logits_at(model, inputs, places))
        # The target search puts the texts without an answer last.
        order = torch.cat([(rows.targets >= 0).nonzero(), (rows.targets < 0).nonzero()]).squeeze(1)
        last = logits[order].log_softmax(-1)
        subjects = torch.tensor([text.subject for text in stand_ins], device=device)
        hidden = seen[self._middle_block][torch.arange(len(texts), device=device), subjects]
        return _Reference.of(texts, last, self._logit_lens(hidden).log_softmax(-1))

    def _logit_lens(self, hidden: Tensor) -> Tensor:
        """Return the logit lens of a hidden state: the head's logits at an intermediate layer."""
        norm = self.view.final_norm
        logits: Tensor = self.view.head(hidden if norm is None else norm(hidden))
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    @property
    def _name(self) -> str:
        return f"{type(self).__name__}({type(self.editor).__name__})"

    @property
    def _middle_block(self) -> str:
        return self.view.block(self.compared_layer).name
