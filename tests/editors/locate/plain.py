"""The target search as the papers write it: one request, every layer, every position."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_edit.editors.locate.search_objective import Objective
from lightning_edit.inference.tokenized_text import TokenizedText
from lightning_edit.models.view import ModelView


def _logits(
    view: ModelView, texts: Sequence[TokenizedText], modules: list[Any], delta: Tensor
) -> Any:
    """Logits of every text, each in a forward pass of its own, and the site's output at s."""
    seen, logits = [], []
    for text in texts:
        parts = []

        def hook(added: Tensor, output: Any, at: int = text.subject, out: Any = parts) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            flat = hidden.reshape(-1, hidden.shape[-1])
            out.append(flat[at].detach())
            moved = flat.index_add(0, torch.tensor([at]), added[None]).view(hidden.shape)
            return (moved, *output[1:]) if isinstance(output, tuple) else moved

        handles = [
            module.register_forward_hook(lambda _, args, output, part=part: hook(part, output))
            for module, part in zip(modules, delta.chunk(len(modules)), strict=True)
        ]
        logits.append(view.model(input_ids=torch.tensor([text.ids]), use_cache=False).logits[0])
        seen.append(torch.cat(parts))
        for handle in handles:
            handle.remove()
    return logits, seen


def plain_target(
    view: ModelView,
    texts: Sequence[TokenizedText],
    watched: TokenizedText,
    block: int,
    site: str,
    objective: Objective,
) -> Tensor:
    """Return h₀ + δ of one request."""
    parts = view.block(block)
    names = {"block": [parts.name], "mlp": [parts.mlp]}.get(site, [parts.attention_out, parts.mlp])
    modules = [view.model.get_submodule(name) for name in names]
    delta = torch.zeros(len(names) * view.hidden_size, requires_grad=True)
    optimizer = torch.optim.Adam([delta], lr=objective.lr)
    initial, before = None, None
    for step in range(objective.steps):
        logits, seen = _logits(view, [*texts, watched], modules, delta)
        initial = seen[0] if initial is None else initial
        losses = []
        for text, row in zip(texts, logits, strict=False):
            log_probs = row[-len(text.answer) :].log_softmax(-1)
            losses.append(-log_probs.gather(1, torch.tensor(text.answer)[:, None]).mean())
        now = logits[-1][watched.watch].log_softmax(-1)
        before = now.detach() if before is None else before
        kl = (now.exp() * (now - before)).sum()
        pairs = list(zip(delta.chunk(len(names)), initial.chunk(len(names)), strict=True))
        decay = sum(objective.weight_decay * part.norm() / own.norm() ** 2 for part, own in pairs)
        loss = torch.stack(losses).mean() + objective.kl_factor * kl + decay
        if loss < objective.threshold or step == objective.steps - 1:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for part, own in pairs:
                if part.norm() > (largest := objective.clamp * own.norm()):
                    part.mul_(largest / part.norm())
    return (initial + delta).detach()
