"""LTI's search as the paper writes it: a request, every layer, every position, a text a pass."""

from typing import Any

import torch
from torch import Tensor

from lightning_edit.editors import LTI
from lightning_edit.editors.locate.prompts import essence_texts, rewriting_texts
from lightning_edit.inference.tokenized_text import TokenizedText
from lightning_edit.types import EditBatch


def _evaluate_objective(
    editor: LTI, text: TokenizedText, delta: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities at the answer (or the end), those of the middle layer, and h at s."""
    model, site, hidden = editor.language_model, [], []
    block = model.transformer.h[editor.host.edited_layers[-1]]

    def add(module: Any, args: Any, output: Any) -> Any:
        found = output[0] if isinstance(output, tuple) else output
        site.append(found[0, text.subject].detach())
        if delta is None:
            return output
        moved = found.index_add(1, torch.tensor([text.subject]), delta[None, None])
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    def note(module: Any, args: Any, output: Any) -> None:
        found = output[0] if isinstance(output, tuple) else output
        hidden.append(found[0, text.subject])

    at_mlp = editor.host.target_search.site == "mlp"
    handles = [
        (block.mlp if at_mlp else block).register_forward_hook(add),
        model.transformer.h[editor.compared_layer].register_forward_hook(note),
    ]
    logits = model(input_ids=torch.tensor([text.ids]), use_cache=False).logits[0]
    for handle in handles:
        handle.remove()
    middle = model.lm_head(model.transformer.ln_f(hidden[0]))
    count = max(1, len(text.answer))
    return logits[-count:].log_softmax(-1), middle.log_softmax(-1), site[0]


def _premise_texts(editor: LTI, part: EditBatch) -> list[TokenizedText]:
    (request,) = part.requests
    told = f"Imagine that {request.prompt} {request.target}\n"
    return rewriting_texts(editor.tokenizer, part, [told + one for one in editor.host.templates])


def plain_lti(editor: LTI, part: EditBatch) -> tuple[Tensor, int]:
    """Return h₀ + δ of one request, and the steps that were taken."""
    objective = editor.host.objective
    essence = essence_texts(editor.tokenizer, part, "prompt_end")
    texts = [*rewriting_texts(editor.tokenizer, part, editor.host.templates), *essence]
    with torch.no_grad():
        told = [
            _evaluate_objective(editor, text, None)
            for text in [*_premise_texts(editor, part), *essence]
        ]
        initial = _evaluate_objective(editor, texts[0], None)[2]
    delta = torch.zeros_like(initial, requires_grad=True)
    optimizer = torch.optim.Adam([delta], lr=objective.lr)
    for step in range(objective.steps):
        nll, last, middle = [], [], []
        for text, (before, deep, _) in zip(texts, told, strict=True):
            now, decoded, _ = _evaluate_objective(editor, text, delta)
            nll += [-line[token] for line, token in zip(now, text.answer, strict=False)]
            last += [(p.exp() * (p - q)).sum() for p, q in zip(now, before, strict=True)]
            middle.append((decoded.exp() * (decoded - deep)).sum())
        parts = [torch.stack(each).mean() for each in (nll, last, middle)]
        loss = editor.nll * parts[0] + editor.last * parts[1] + editor.middle * parts[2]
        loss = loss + objective.decay(delta.norm()[None, None], initial.norm()[None, None])[0]
        if loss < objective.threshold or step == objective.steps - 1:
            return (initial + delta).detach(), step
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            largest = objective.clamp * initial.norm()
            delta.mul_((largest / delta.norm()).clamp(max=1.0))
    raise AssertionError("a search has at least one pass")
