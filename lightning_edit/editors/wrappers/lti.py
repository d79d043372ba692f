"""LTI: Zhang et al., Uncovering Overfitting in Large Language Model Editing, ICLR 2025.

arXiv 2410.07819. Axis names: ``r`` -- texts; ``m`` -- places read; ``a`` -- those of them that
predict an answer's token; ``v`` -- vocabulary.
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
from lightning_edit.editors.locate.target_search import Loss, Targets
from lightning_edit.editors.one_by_one import one_after_another
from lightning_edit.editors.wrappers.base import WrappedEditor
from lightning_edit.edits.delta import Delta
from lightning_edit.exceptions import ConfigError
from lightning_edit.functional.losses import drift, mean_by
from lightning_edit.inference.answers import AnswerRows
from lightning_edit.inference.hooks import capture, select_head_positions
from lightning_edit.inference.suffix.forward import SuffixForward
from lightning_edit.inference.tokenized_text import TokenizedText
from lightning_edit.types import EditBatch


@dataclass(frozen=True)
class _Reference:
    """How the model answers when the facts stand in its context, for the texts of a pass.

    Args:
        texts: The texts, without the facts in front.
        last: Log-probabilities at their answers' tokens, text after text, then behind the texts
            without an answer.
        middle: Those that the middle layer gives at their subjects.
        line_request: Request of every line of ``last``, numbered as they come.
        text_request: Request of every text.
        targets: The answers' tokens.
    """

    texts: Sequence[TokenizedText]
    last: Float[Tensor, "m v"]
    middle: Float[Tensor, "r v"]
    line_request: Int[Tensor, " m"]
    text_request: Int[Tensor, " r"]
    targets: Int[Tensor, " a"]

    @classmethod
    def of(cls, texts: Sequence[TokenizedText], last: Tensor, middle: Tensor) -> "_Reference":
        """Number the requests; arguments as of the class."""
        numbers = {request: i for i, request in enumerate(dict.fromkeys(t.request for t in texts))}
        requests = [numbers[text.request] for text in texts]
        tensor = partial(torch.tensor, dtype=torch.long, device=last.device)
        lines = [requests[row] for row in _lines(texts)]
        targets = [token for text in texts for token in text.answer]
        return cls(texts, last, middle, tensor(lines), tensor(requests), tensor(targets))

    @property
    def count(self) -> int:
        """Number of requests."""
        return int(self.text_request[-1]) + 1

    def of_those(self, texts: Sequence[TokenizedText]) -> "_Reference":
        """Return the part of the requests that are left, given their texts."""
        left = {text.request for text in texts}
        stays = [text.request in left for text in self.texts]
        rows = torch.tensor(stays, device=self.last.device)
        lines = rows[torch.tensor(_lines(self.texts), device=rows.device)]
        return self.of(list(compress(self.texts, stays)), self.last[lines], self.middle[rows])


def _lines(texts: Sequence[TokenizedText]) -> list[int]:
    """Return the text that each place belongs to, in the order in which a search reads them."""
    answers = [row for row, text in enumerate(texts) for _ in text.answer]
    return answers + [row for row, text in enumerate(texts) if text.watch is not None]


class LTI(WrappedEditor):
    r"""Learn the inference: search a target that makes the model answer as if it had been told.

    A host's search makes the new answer likely everywhere. Here the edited model has also to
    follow, at a middle layer and at its end, the unedited model that reads "Imagine that" and the
    new fact before the prompt:
    :math:`J = a\,\mathrm{NLL} + b\,\mathrm{KL}_\text{last} + c\,\mathrm{KL}_\text{mid}` and the
    host's weight decay. Keys and solve are the host's.

    Args:
        editor: The host, a locate-then-edit method; ``None``: MEMIT. Its steps, learning rate,
            clamp, threshold and weight decay hold for this search too.
        nll: a (0.125 in MEMIT-LTI's configs for GPT-2 XL and Llama 2).
        last: b (0.0425 there for GPT-2 XL).
        middle: c (0.0525 there for GPT-2 XL).
        middle_layer: Block whose output is compared; ``None``: at six tenths of the depth, above
            the edited ones (30 of 48 for GPT-2 XL). It lies below the last block, whose answers are
            compared anyway.

    Note:
        The authors' code reads the reference at positions of the texts without "Imagine that …",
        too early; here they are shifted, as the paper means.
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
        if not isinstance(self.editor, LocateThenEdit) or self.editor.site == "attention+mlp":
            raise ValueError(
                "LTI replaces the target search of a locate-then-edit method with one vector a "
                f"request, such as MEMIT or ROME; got {type(self.editor).__name__}"
            )
        self.nll = nll
        self.last = last
        self.middle = middle
        self.middle_layer = middle_layer

    @property
    def host(self) -> LocateThenEdit:
        """The host, as what it was checked to be."""
        return cast("LocateThenEdit", self.editor)

    @property
    def compared_layer(self) -> int:
        """The block of the bound model whose output is compared."""
        if self.middle_layer is not None:
            return self.middle_layer
        edited, top = self.host.edited_layers[-1], self.view.num_blocks - 1
        return max(edited, min(top - 1, max(edited + 1, round(0.6 * top))))

    def on_bind(self) -> None:
        """Bind the host, and check which layer is compared.

        Raises:
            ConfigError: If edits cannot reach that layer, or it is the last one.
        """
        super().on_bind()
        edited = self.host.edited_layers[-1]
        # What the last block gives at a subject is not computed, unless it is edited itself.
        highest = max(edited, self.view.num_blocks - 2)
        if not edited <= self.compared_layer <= highest:
            raise ConfigError(
                "LTI compares a layer that edits reach, below the last block: expected "
                f"`middle_layer` from {edited} to {highest}, got {self.middle_layer}"
            )

    def edit(self, batch: EditBatch) -> Delta:
        """Search every request's target and let the host write them.

        Args:
            batch: Requests that name their subjects.
        """
        if not self.batched and len(batch) > 1:
            return one_after_another(self, batch)
        with torch.inference_mode(False), torch.enable_grad():
            return self.host.write(batch, self.search(batch))

    def edit_independent(self, batch: EditBatch) -> list[Delta]:
        """Find one update a request, each as if it were alone; the search runs once for all.

        Args:
            batch: Requests that name their subjects.
        """
        with torch.inference_mode(False), torch.enable_grad():
            targets = self.search(batch)
            parts = enumerate(batch.split())
            return [self.host.write(part, targets.only(number)) for number, part in parts]

    # -------------------------------------------------------------------------------------- search

    def search(self, batch: EditBatch) -> Targets:
        """Find every request's target vector on the current model.

        Args:
            batch: Requests that name their subjects.
        """
        self.subject_positions(batch)
        host = self.host
        texts = rewriting_texts(self.tokenizer, batch, host.templates)
        essence = essence_texts(self.tokenizer, batch, "prompt_end")
        told = dict(zip(texts, self._told(batch), strict=True)) | {text: text for text in essence}
        # What the constraints compare with stands in for the host's divergence.
        objective = replace(host.objective, kl_factor=0.0, early_stopping=EarlyStopping())
        joint = sorted([*texts, *essence], key=lambda text: text.request)
        with self.stage("search"), capture(self.language_model, {self._block: "output"}) as seen:
            return host.search_texts(
                joint, objective, lambda group: self._imitation(self._reference(group, told), seen)
            )

    def _imitation(self, reference: _Reference, seen: Mapping[str, Tensor]) -> Loss:
        """Return the loss of a pass, of whose requests some will leave.

        Args:
            reference: What is to be imitated.
            seen: Holds the middle layer's output after every pass.
        """

        def loss(tail: SuffixForward, texts: Sequence[TokenizedText], logits: Tensor) -> Tensor:
            nonlocal reference
            if len(texts) < len(reference.texts):
                reference = reference.of_those(texts)
            count, lines = reference.count, reference.line_request
            log_probs = logits.log_softmax(-1)
            # All texts of a request end with one answer: the mean over tokens is that over texts.
            targets = reference.targets[:, None]
            answers = log_probs[: len(targets)].gather(1, targets).squeeze(1)
            last = drift(log_probs, reference.last)
            decoded = self._decode(tail.at_subject(seen[self._block])).log_softmax(-1)
            middle = drift(decoded, reference.middle)
            return (
                self.nll * mean_by(-answers, lines[: len(answers)], count)
                + self.last * mean_by(last, lines, count)
                + self.middle * mean_by(middle, reference.text_request, count)
            )

        return loss

    def _told(self, batch: EditBatch) -> list[TokenizedText]:
        """Return every request behind every template, each with the new fact in front."""
        texts = []
        for part in batch.split():
            (request,) = part.requests
            told = f"Imagine that {request.prompt} {request.target}\n"
            told = told.replace("{", " ").replace("}", " ")
            templates = [told + template for template in self.host.templates]
            texts += rewriting_texts(self.tokenizer, part, templates)
        return texts

    @torch.no_grad()
    def _reference(
        self, texts: Sequence[TokenizedText], told: Mapping[TokenizedText, TokenizedText]
    ) -> _Reference:
        """Run the model as it is on what stands for every text."""
        stand_ins = [told[text] for text in texts]
        pairs = [
            (text.ids[: len(text.ids) + 1 - len(text.answer)], text.answer)
            if text.answer
            else (text.ids, ())
            for text in stand_ins
        ]
        device = self.view.embeddings.get_parameter("weight").device
        rows = AnswerRows.pad(pairs, device)
        model, places = self.language_model, (rows.rows, rows.positions)
        with capture(model, {self._block: "output"}) as seen, select_head_positions(model, places):
            output = model(input_ids=rows.ids, attention_mask=rows.mask.long(), use_cache=False)
        # A search reads the texts without an answer last.
        order = torch.cat([(rows.targets >= 0).nonzero(), (rows.targets < 0).nonzero()]).squeeze(1)
        wide = torch.promote_types(output.logits.dtype, torch.float32)
        last = output.logits[order, 0].to(wide).log_softmax(-1)
        subjects = torch.tensor([text.subject for text in stand_ins], device=device)
        hidden = seen[self._block][torch.arange(len(texts), device=device), subjects]
        return _Reference.of(texts, last, self._decode(hidden).log_softmax(-1))

    def _decode(self, hidden: Tensor) -> Tensor:
        """Return the logits that the head would give for a hidden state between blocks."""
        norm = self.view.final_norm
        logits: Tensor = self.view.head(hidden if norm is None else norm(hidden))
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    @property
    def _block(self) -> str:
        return self.view.block(self.compared_layer).name
