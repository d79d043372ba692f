"""Fixed evaluation texts: perplexity, hidden states and top-k sampled continuations.

No result depends on the batch size or on the number of processes beyond float32 rounding.

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
from lightning_edit.exceptions import ArchitectureError, DataError
from lightning_edit.functional.padding import pad
from lightning_edit.functional.tokens import length_sorted
from lightning_edit.inference.eval_mode import evaluating
from lightning_edit.inference.generation import neutral_settings
from lightning_edit.inference.hooks import Side, capture
from lightning_edit.inference.model_responder import ModelResponder
from lightning_edit.inference.responder import Responder, TokenScores
from lightning_edit.models.prompt_encoder import PromptEncoder
from lightning_edit.models.view import resolve
from lightning_edit.statistics.texts import FileTexts

#: Maximum tokens of a prompt to continue; a fixed bound, so that no text depends on the others.
_MAX_PROMPT_TOKENS = 16


def fixed_texts(source: str | Sequence[str] | None, limit: int) -> tuple[str, ...]:
    """Load the fixed evaluation texts from a file, a list or the embedded atlas.

    Args:
        source: A ``.txt`` file (one text per line) or ``.jsonl`` file (field ``text``), the texts
            themselves, or ``None`` for sentences of the embedded atlas that its model was not
            trained on.
        limit: Number of texts, the first ones.

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
    """Log-likelihoods, hidden states and continuations of running text from one language model.

    Args:
        model: A decoder-only Hugging Face model.
        tokenizer: Its tokenizer.
        batch_size: Texts per batch.
        max_tokens: Texts are truncated to this many tokens.
        responder: What likelihoods are asked of; ``None``: the model itself. Hidden states are
            always the model's.

    Raises:
        ArchitectureError: If the model is an encoder-decoder, which assigns no probability to
            running text.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        batch_size: int = 32,
        max_tokens: int = 128,
        responder: Responder | None = None,
    ) -> None:
        if model.config.is_encoder_decoder:
            raise ArchitectureError(
                f"{type(model).__name__} is an encoder-decoder, which assigns no probability to "
                "running text; perplexity and drift on texts need a decoder-only model"
            )
        self.model = model
        self.prompts = PromptEncoder.for_model(model, tokenizer)
        self.responder = (
            ModelResponder(model, self.prompts, batch_size) if responder is None else responder
        )
        self.batch_size = batch_size
        self.room = self.prompts.limits.positions
        self.max_tokens = min(max_tokens, self.room or max_tokens)

    def nlls(self, texts: Sequence[str]) -> list[tuple[float, int]]:
        """Return each text's negative log-likelihood in nats, and its number of predicted tokens.

        The first token is not predicted, since it has no context; if the tokenizer adds a BOS, that
        is the first.

        Args:
            texts: Texts; a single-token text has no predicted token and gives (0.0, 0).
        """
        return [(score.total, len(score.tokens)) for score in self.scores(texts)]

    def scores(self, texts: Sequence[str]) -> list[TokenScores]:
        """Return the score of every predicted token of each text.

        Args:
            texts: Texts, as of :meth:`nlls`.
        """
        return self.responder.loglikelihood_rolling(texts, self.max_tokens)

    def hidden(
        self, texts: Sequence[str], layers: Sequence[int] | None = None
    ) -> Float[Tensor, "n l d"]:
        """Return the hidden states at the last token of each text, in float32 on the CPU.

        Args:
            texts: Texts.
            layers: Indices of blocks, from 0, whose outputs are read; for the last block the input
                of the output head, after the final norm, as in transformers' ``hidden_states``.
                ``None``: the middle block and the last.

        Raises:
            ArchitectureError: If the model has no block with an index.

        Note:
            The forward hooks are removed afterwards. Those of ``output_hidden_states`` would stay
            on the model, miss hooks that are added later, and prevent pickling.
        """
        view = resolve(self.model, reading=True)
        chosen = layers if layers is not None else default_layers(view.num_blocks)
        head, top = view.name_of(view.head), view.num_blocks - 1
        places = [head if layer == top else view.block(layer).name for layer in chosen]
        wanted: dict[str, Side] = {n: "input" if n == head else "output" for n in places}
        found: dict[int, Tensor] = {}
        with capture(self.model, wanted) as seen:
            for numbers, _, mask, _ in self._forward(texts):
                last = mask.sum(1) - 1
                rows = torch.arange(len(numbers), device=last.device)
                read = torch.stack([_states_at(seen[name], rows, last) for name in places], dim=1)
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
        """Generate top-k sampled continuations of one length, ignoring EOS, with their prompts.

        Each prompt has its own random generator, so a continuation depends neither on the other
        prompts nor on the process that generates it.

        Args:
            prompts: Prompts, truncated to 16 tokens.
            numbers: An index for each prompt; with ``seed`` it seeds the prompt's generator.
            max_new_tokens: Tokens to generate; fewer if the model's context is shorter.
            top_k: Number of most probable tokens to sample from.
            seed: Seed of all prompts.
        """
        rows = [self.prompts.running(prompt, _MAX_PROMPT_TOKENS) for prompt in prompts]
        room = max_new_tokens if self.room is None else max(1, self.room - _MAX_PROMPT_TOKENS)
        written: dict[int, str] = {}
        for places in length_sorted([len(row) for row in rows], self.batch_size):
            ids, mask = pad([rows[place] for place in places], left=True)
            sampler = GumbelTopK(top_k, [f"{seed}/{numbers[place]}" for place in places])
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
                    **neutral_settings(self.model),
                ).tolist()
            for place, row in zip(places, output, strict=True):
                text = self.prompts.decode(row[ids.shape[1] :])
                written[place] = f"{prompts[place]} {text.strip()}"
        return [written[place] for place in range(len(prompts))]

    @property
    def _device(self) -> torch.device:
        # A model that is split over devices takes input ids on the device of its embedding.
        weight: Tensor = self.model.get_input_embeddings().weight
        return weight.device

    def _forward(self, texts: Sequence[str]) -> Iterator[tuple[list[int], Tensor, Tensor, Any]]:
        rows = [self.prompts.running(text, self.max_tokens) for text in texts]
        for numbers in length_sorted([len(row) for row in rows], self.batch_size):
            ids, mask = pad([rows[number] for number in numbers])
            ids, mask = ids.to(self._device), mask.to(self._device)
            with evaluating(self.model):
                output = self.model(input_ids=ids, attention_mask=mask, use_cache=False)
            yield numbers, ids.to(output.logits.device), mask.to(output.logits.device), output


def default_layers(blocks: int) -> tuple[int, int]:
    """Return the indices of the middle block and the last one."""
    return (blocks - 1) // 2, blocks - 1


def _states_at(states: Tensor, rows: Tensor, last: Tensor) -> Float[Tensor, "b d"]:
    return states[rows.to(states.device), last.to(states.device)].detach().float().cpu()


class GumbelTopK(LogitsProcessor):
    """Gumbel-max top-k sampling as a logits processor for greedy generation, seeded per row.

    The argmax of log-probabilities plus Gumbel noise is a sample of the distribution. Each row has
    its own generator, on the CPU, so that a row is the same in any batch.

    Args:
        k: Number of highest scores to sample from.
        seeds: One seed text per row.
    """

    def __init__(self, k: int, seeds: Sequence[str]) -> None:
        self.k = k
        self.generators = [torch.Generator().manual_seed(_generator_seed(seed)) for seed in seeds]

    def __call__(
        self, input_ids: Int[Tensor, "b t"], scores: Float[Tensor, "b v"]
    ) -> Float[Tensor, "b v"]:
        """Add Gumbel noise to the top-k scores, so that the argmax is the sampled token.

        Args:
            input_ids: Tokens so far.
            scores: Logits of the next token.
        """
        best = scores.float().topk(min(self.k, scores.shape[-1]))
        uniform = torch.stack(
            [torch.rand(best.values.shape[-1], generator=each) for each in self.generators]
        )
        # `rand` may return 0, which would give a noise of minus infinity.
        noise = -torch.log(-torch.log(uniform.clamp(1e-12, 1 - 1e-7)))
        drawn = torch.full_like(scores, -torch.inf, dtype=torch.float32)
        return drawn.scatter(-1, best.indices, best.values + noise.to(scores.device))


def _generator_seed(seed: str) -> int:
    # Python's own `hash` of a string differs between processes.
    return int.from_bytes(seed.encode(), "big") % (2**63 - 25)
