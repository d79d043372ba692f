"""Texts that stay the same over a run, and what a language model makes of them.

Nothing here depends on the batch size or on the number of processes beyond float32 rounding.

Axis names: ``n`` -- texts; ``l`` -- layers; ``d`` -- hidden width; ``b`` -- rows of a batch;
``t`` -- token positions; ``v`` -- vocabulary.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor

from lightning_edit.atlas.held_out import held_out_texts
from lightning_edit.evaluation.scorer import evaluating
from lightning_edit.exceptions import ArchitectureError, DataError
from lightning_edit.functional.padding import pad
from lightning_edit.functional.scores import token_scores
from lightning_edit.functional.tokens import length_sorted
from lightning_edit.inference.hooks import Side, capture
from lightning_edit.models.view import resolve
from lightning_edit.statistics.texts import FileTexts

Ids = tuple[int, ...]
#: Most tokens of a prompt that is continued; a bound of its own, so that no text depends on others.
_PROMPT = 16


def fixed_texts(source: str | Sequence[str] | None, limit: int) -> tuple[str, ...]:
    """Return the texts that are to be read.

    Args:
        source: A ``.txt`` file (a text a line) or ``.jsonl`` file (field ``text``), the texts
            themselves, or ``None`` for sentences of the embedded atlas that its model was not
            trained on.
        limit: How many to take, the first ones.

    Raises:
        DataError: If there are none, or the file cannot be read.
    """
    if source is None:
        return tuple(held_out_texts(limit))
    listed = FileTexts(Path(source)) if isinstance(source, str) else source
    texts = tuple(islice(listed, limit))
    if not texts:
        raise DataError(
            f"there is no text in {source!r}; give a file with a text a line, or a list of texts"
        )
    return texts


class TextReader:
    """Reads texts with one language model.

    Args:
        model: A decoder-only Hugging Face model.
        tokenizer: Its tokenizer.
        batch_size: Texts that go through the model together.
        max_tokens: Texts are cut to so many tokens.

    Raises:
        ArchitectureError: If the model is an encoder-decoder, which gives running text no
            probability.
    """

    def __init__(
        self, model: Any, tokenizer: Any, batch_size: int = 32, max_tokens: int = 128
    ) -> None:
        if model.config.is_encoder_decoder:
            raise ArchitectureError(
                f"{type(model).__name__} is an encoder-decoder, which gives running text no "
                "probability; perplexity and drift on texts need a decoder-only model"
            )
        self.model = model
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.room: int | None = getattr(model.config, "max_position_embeddings", None)
        self.max_tokens = min(max_tokens, self.room or max_tokens)

    def nlls(self, texts: Sequence[str]) -> list[tuple[float, int]]:
        """Return each text's negative log probability in nats, and how many tokens it is of.

        The first token is not predicted, since nothing stands before it; where the tokenizer adds a
        BOS, that is the first.

        Args:
            texts: Texts; one of a single token has nothing that is predicted, (0.0, 0).
        """
        found: dict[int, tuple[float, int]] = {}
        for numbers, ids, mask, output in self._forward(texts):
            known = mask[:, 1:].bool()
            nll, _ = token_scores(output.logits[:, :-1][known], ids[:, 1:][known])
            tokens = known.sum(1).tolist()
            for number, part in zip(numbers, torch.split(nll.double(), tokens), strict=True):
                found[number] = float(part.sum()), len(part)
        return [found[number] for number in range(len(texts))]

    def hidden(
        self, texts: Sequence[str], layers: Sequence[int] | None = None
    ) -> Float[Tensor, "n l d"]:
        """Return the hidden states at the last token of each text, in float32 on the CPU.

        Args:
            texts: Texts.
            layers: Numbers of blocks, from 0, whose outputs are read; of the last block what the
                output head reads, the final norm included, as in transformers' ``hidden_states``.
                ``None``: the middle block and the last.

        Raises:
            ArchitectureError: If the model has no block of a number.

        Note:
            The hooks are gone afterwards. Those of ``output_hidden_states`` would stay on the
            model, see nothing that was hooked in later, and keep it from being pickled.
        """
        view = resolve(self.model)
        chosen = layers if layers is not None else default_layers(view.num_blocks)
        head, top = view.name_of(view.head), view.num_blocks - 1
        places = [head if layer == top else view.block(layer).name for layer in chosen]
        wanted: dict[str, Side] = {n: "input" if n == head else "output" for n in places}
        found: dict[int, Tensor] = {}
        with capture(self.model, wanted) as seen:
            for numbers, _, mask, _ in self._forward(texts):
                last = mask.sum(1) - 1
                rows = torch.arange(len(numbers), device=last.device)
                read = torch.stack([_at(seen[name], rows, last) for name in places], dim=1)
                found.update(zip(numbers, read, strict=True))
        return torch.stack([found[number] for number in range(len(texts))])

    def continuations(
        self,
        prompts: Sequence[str],
        numbers: Sequence[int],
        max_new_tokens: int,
        top_k: int = 5,
        seed: int = 0,
    ) -> list[str]:
        """Return prompts with sampled continuations of one length; the text may end and go on.

        Each prompt draws from random numbers of its own, so a continuation depends neither on the
        other prompts nor on the process that writes it.

        Args:
            prompts: Beginnings, 16 tokens at most.
            numbers: A number for each prompt; with the seed it decides the random numbers.
            max_new_tokens: Tokens to write; fewer where the model has no room for them.
            top_k: Most probable tokens to sample from.
            seed: Seed of all prompts.
        """
        rows = [self._ids(prompt)[:_PROMPT] for prompt in prompts]
        room = max_new_tokens if self.room is None else max(1, self.room - _PROMPT)
        written: dict[int, str] = {}
        for places in length_sorted([len(row) for row in rows], self.batch_size):
            ids, mask = pad([rows[place] for place in places], left=True)
            sampler = TopKNoise(top_k, [f"{seed}/{numbers[place]}" for place in places])
            with evaluating(self.model):
                output = self.model.generate(
                    input_ids=ids.to(self._device),
                    attention_mask=mask.to(self._device),
                    max_new_tokens=min(max_new_tokens, room),
                    do_sample=False,
                    num_beams=1,
                    repetition_penalty=1.0,
                    no_repeat_ngram_size=0,
                    eos_token_id=None,
                    pad_token_id=0,
                    logits_processor=[sampler],
                ).tolist()
            for place, row in zip(places, output, strict=True):
                text = self.tokenizer.decode(row[ids.shape[1] :], skip_special_tokens=True)
                written[place] = f"{prompts[place]} {str(text).strip()}"
        return [written[place] for place in range(len(prompts))]

    @property
    def _device(self) -> torch.device:
        # A model that is spread over devices takes its ids where the embedding lies.
        weight: Tensor = self.model.get_input_embeddings().weight
        return weight.device

    def _ids(self, text: str) -> Ids:
        ids = list(self.tokenizer(text, verbose=False)["input_ids"])
        if len(ids) > 1 and ids[-1] == self.tokenizer.eos_token_id:
            ids = ids[:-1]
        return tuple(ids[: self.max_tokens])

    def _forward(self, texts: Sequence[str]) -> Iterator[tuple[list[int], Tensor, Tensor, Any]]:
        rows = [self._ids(text) for text in texts]
        for numbers in length_sorted([len(row) for row in rows], self.batch_size):
            ids, mask = pad([rows[number] for number in numbers])
            ids, mask = ids.to(self._device), mask.to(self._device)
            with evaluating(self.model):
                output = self.model(input_ids=ids, attention_mask=mask, use_cache=False)
            yield numbers, ids.to(output.logits.device), mask.to(output.logits.device), output


def default_layers(blocks: int) -> tuple[int, int]:
    """Return the middle block and the last one."""
    return (blocks - 1) // 2, blocks - 1


def _at(states: Tensor, rows: Tensor, last: Tensor) -> Float[Tensor, "b d"]:
    return states[rows.to(states.device), last.to(states.device)].detach().float().cpu()


class TopKNoise(LogitsProcessor):
    """Makes greedy generation sample: Gumbel noise on the ``k`` best scores of each row.

    The arg-max of log probabilities plus Gumbel noise is a sample of the distribution. Each row has
    its own generator, on the CPU, so that a row is the same in any batch.

    Args:
        k: Scores that may win.
        seeds: One text a row.
    """

    def __init__(self, k: int, seeds: Sequence[str]) -> None:
        self.k = k
        self.generators = [torch.Generator().manual_seed(_number(seed)) for seed in seeds]

    def __call__(
        self, input_ids: Int[Tensor, "b t"], scores: Float[Tensor, "b v"]
    ) -> Float[Tensor, "b v"]:
        """Return scores of which the largest is the sampled token.

        Args:
            input_ids: Tokens so far.
            scores: Scores of the next one.
        """
        best = scores.float().topk(min(self.k, scores.shape[-1]))
        uniform = torch.stack(
            [torch.rand(best.values.shape[-1], generator=each) for each in self.generators]
        )
        # `rand` may give 0, whose noise would be minus infinity.
        noise = -torch.log(-torch.log(uniform.clamp(1e-12, 1 - 1e-7)))
        drawn = torch.full_like(scores, -torch.inf, dtype=torch.float32)
        return drawn.scatter(-1, best.indices, best.values + noise.to(scores.device))


def _number(seed: str) -> int:
    # Python's own hash of a text differs from process to process.
    return int.from_bytes(seed.encode(), "big") % (2**63 - 25)
