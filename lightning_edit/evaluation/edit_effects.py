"""Effects of edits on facts through linear layers: exact shares and first order.

Attribution itself is in :mod:`~lightning_edit.evaluation.edit_attribution`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_edit.edits.ledger import Ledger
from lightning_edit.edits.shares import Share, linear_module, shares_of
from lightning_edit.evaluation.attributed import EditEffect
from lightning_edit.inference.output_gradients import RowGradients
from lightning_edit.models.prompt_encoder import EncodedPrompt, PromptEncoder
from lightning_edit.models.sites import site_of
from lightning_edit.models.view import resolve


@dataclass(frozen=True)
class LayerShares:
    """Shares of edits in the output of one linear layer at a fact's key.

    Args:
        parameter: The weight or bias.
        token: The token at which the key is read.
        key: The layer's input there on the edited model, (d_in,), in float64.
        shares: What each edit adds, (d_out,), with its requests.
        change: What all edits add, which is the sum of the shares.
    """

    parameter: str
    token: str
    key: Tensor
    shares: tuple[tuple[tuple[str, ...], Tensor], ...]
    change: Tensor


class LayerEffects:
    """Effects of the edits in force through the linear layers that they change.

    Args:
        ledger: The ledger.
        prompts: Tokenizer of the language model.

    Attributes:
        modules: The linear layer of every edited parameter that acts on its output linearly.
    """

    def __init__(self, ledger: Ledger, prompts: PromptEncoder) -> None:
        self.ledger = ledger
        self.prompts = prompts
        self.view = resolve(ledger.model)
        found = {name: linear_module(ledger.model, name) for name in ledger.touched}
        self.modules = {name: module for name, module in found.items() if module is not None}

    @property
    def names(self) -> list[str]:
        """Names of the layers, each once."""
        return list(dict.fromkeys(self.modules.values()))

    def of(
        self, gradients: Sequence[RowGradients], encoded: Sequence[EncodedPrompt]
    ) -> list[list[EditEffect]]:
        """Return the effects of every edit on every fact, in the order of the commits.

        Args:
            gradients: Of each fact's answer, by the outputs of :attr:`names`.
            encoded: The facts' tokens.
        """
        modules = self.modules
        found: list[list[EditEffect]] = [[] for _ in gradients]
        device = torch.device("cpu")
        reads = {name: _TokenReads.of(gradients, name, device) for name in set(modules.values())}
        at_key = {
            name: torch.stack(
                [
                    row.layers[name].inputs[self._key(row, encoded[n], name)].to(device)
                    for n, row in enumerate(gradients)
                ]
            )
            for name in reads
        }
        for entry in self.ledger.in_force.entries:
            delta = self.ledger.in_force.delta(entry)
            for name in delta.weights:
                if name not in modules:
                    continue
                module = modules[name]
                site, read = site_of(self.view, module), reads[module]
                for share in shares_of(delta, name):
                    log_probs = read.effects(share)
                    logits = read.per_fact(share.along(read.inputs, read.logit))
                    norms = share.at(at_key[module]).norm(dim=1).tolist()
                    again = share.resolved()
                    without: Sequence[float | None] = [None] * len(found)
                    if again is not None:
                        without = read.effects(again)
                    for n, effects in enumerate(found):
                        effects.append(
                            EditEffect(
                                share.ids,
                                entry.seq,
                                share.by,
                                site.stack,
                                site.block,
                                name,
                                log_probs[n],
                                logits[n],
                                norms[n],
                                share.overlap(at_key[module][n]),
                                without[n],
                            )
                        )
        return found

    def _key(self, row: RowGradients, encoded: EncodedPrompt, name: str) -> int:
        """Return the position of a fact's key at a layer: the subject's last token, where known.

        Else the token, of those that the answer depends on, at which the edits add most.
        """
        reads_prompt = not self.view.is_encoder_decoder or (
            site_of(self.view, name).stack == "encoder"
        )
        if encoded.subject_last is not None and reads_prompt:
            return encoded.subject_last
        layer = row.layers[name]
        added = torch.zeros_like(layer.log_prob)
        for parameter, module in self.modules.items():
            if module == name:
                total = self.ledger.touched[parameter].total.to(added.device)
                added += total if total.ndim == 1 else layer.inputs @ total.mT
        size = added.norm(dim=1)
        return int(torch.where(layer.log_prob.norm(dim=1) > 0, size, -1.0).argmax())

    def key_token(self, row: RowGradients, encoded: EncodedPrompt, name: str) -> str:
        """Return the text of the token at which a fact's key is read in a layer.

        Args:
            row: Gradients of the fact's answer.
            encoded: The fact's tokens.
            name: Dotted name of the layer.
        """
        place = self._key(row, encoded, name)
        ids = (*encoded.prompt, *encoded.answer)
        return str(self.prompts.tokenizer.decode([ids[place]])) if place < len(ids) else ""

    def shares(self, row: RowGradients, encoded: EncodedPrompt) -> list[LayerShares]:
        """Return the shares of every edit at a fact's key.

        Args:
            row: Gradients of the fact's answer, by the outputs of :attr:`names`.
            encoded: The fact's tokens.
        """
        found = []
        for parameter, module in self.modules.items():
            place = self._key(row, encoded, module)
            key = row.layers[module].inputs[place].cpu()
            shares = [
                (share.ids, share.at(key[None])[0])
                for delta in self.ledger.in_force
                if parameter in delta.weights
                for share in shares_of(delta, parameter)
            ]
            total = self.ledger.touched[parameter].total.cpu()
            change = total if total.ndim == 1 else total @ key
            token = self.key_token(row, encoded, module)
            found.append(LayerShares(parameter, token, key, tuple(shares), change))
        return found


class _TokenReads:
    """A layer's inputs and gradients at the tokens of all facts, one behind the other."""

    def __init__(
        self, inputs: Tensor, log_prob: Tensor, logit: Tensor, fact: Tensor, count: int
    ) -> None:
        self.inputs, self.log_prob, self.logit = inputs, log_prob, logit
        self.fact, self.count = fact, count

    @classmethod
    def of(cls, rows: Sequence[RowGradients], name: str, device: torch.device) -> "_TokenReads":
        layers = [row.layers[name] for row in rows]
        numbers = [n for n, layer in enumerate(layers) for _ in layer.inputs]
        return cls(
            torch.cat([layer.inputs for layer in layers]).to(device),
            torch.cat([layer.log_prob for layer in layers]).to(device),
            torch.cat([layer.logit for layer in layers]).to(device),
            torch.tensor(numbers, device=device),
            len(rows),
        )

    def effects(self, share: Share) -> list[float]:
        """Return the first-order effect of a share on the log-probability of each fact."""
        return self.per_fact(share.along(self.inputs, self.log_prob))

    def per_fact(self, values: Tensor) -> list[float]:
        sums = values.new_zeros(self.count).index_add(0, self.fact, values)
        listed: list[float] = sums.tolist()
        return listed
