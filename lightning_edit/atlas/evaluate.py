"""Exact-match evaluation of a language model on the atlas, in trained and held-out wordings.

``python -m lightning_edit.atlas.evaluate [NAME]`` prints the counts for a packaged model: ``atlas``
(default) or ``atlas-t5``.
"""

import argparse
import random
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_edit.atlas.graph import Atlas
from lightning_edit.atlas.text import Sentence, sentences, states_two_hops
from lightning_edit.models.loading import load_language_model
from lightning_edit.models.prompt_encoder import PromptEncoder

#: (right, asked)
Count = tuple[int, int]
#: Limit on generated tokens; the longest answer of the atlas is shorter.
MAX_NEW_TOKENS = 16


def share(count: Count) -> float:
    """Return the accuracy: right divided by asked, rounded to four digits."""
    return round(count[0] / max(1, count[1]), 4)


def _batches(rows: Sequence[Sentence], size: int = 256) -> Iterable[Sequence[Sentence]]:
    ordered = sorted(rows, key=lambda row: len(row.prompt))
    return (ordered[start : start + size] for start in range(0, len(ordered), size))


@torch.no_grad()
def teacher_forced(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Sentence]
) -> int:
    """Count teacher-forced exact matches: every answer token is the argmax given those before."""
    right = 0
    encoder = PromptEncoder.for_model(model, tokenizer)
    for batch in _batches(rows):
        pairs = [
            (list(prompt), list(answer))
            for prompt, answer in encoder.pairs((row.prompt, row.answer) for row in batch)
        ]
        inputs: dict[str, Tensor] = {}
        before = [prompt for prompt, _ in pairs]
        if encoder.two_stacks:
            inputs["input_ids"], inputs["attention_mask"] = _pad(before, model, left=False)
            before = [[model.config.decoder_start_token_id]] * len(pairs)
        fed = [begin + answer for begin, (_, answer) in zip(before, pairs, strict=True)]
        ids, mask = _pad(fed, model, left=False)
        stack = "decoder_" if encoder.two_stacks else ""
        inputs |= {f"{stack}input_ids": ids, f"{stack}attention_mask": mask}
        best = model(**inputs, use_cache=False).logits.argmax(-1).tolist()
        right += sum(
            guess[len(begin) - 1 : len(begin) + len(answer) - 1] == answer
            for guess, begin, (_, answer) in zip(best, before, pairs, strict=True)
        )
    return right


@torch.no_grad()
def generated(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Sentence]
) -> int:
    """Count exact matches of greedy generation: the answer, a full stop and end of text."""
    right = 0
    end_id = model.config.eos_token_id
    two_stacks = bool(model.config.is_encoder_decoder)
    for batch in _batches(rows):
        prompts = [list(tokenizer(row.prompt)["input_ids"]) for row in batch]
        ids, mask = _pad(prompts, model, left=not two_stacks)
        begin = 1 if two_stacks else ids.shape[1]
        output = model.generate(  # type: ignore[operator]  # transformers types it as a tensor
            input_ids=ids, attention_mask=mask, max_new_tokens=MAX_NEW_TOKENS, do_sample=False
        )
        for new, row in zip(output[:, begin:].tolist(), batch, strict=True):
            if end_id in new:
                text = tokenizer.decode(new[: new.index(end_id)])
                right += str(text).strip() == f"{row.answer}."
    return right


def _pad(rows: Sequence[list[int]], model: PreTrainedModel, left: bool) -> tuple[Tensor, Tensor]:
    width = max(len(row) for row in rows)
    pad_id = model.config.pad_token_id
    ids, mask = [], []
    for row in rows:
        filler, zeros, ones = (
            [pad_id] * (width - len(row)),
            [0] * (width - len(row)),
            [1] * len(row),
        )
        ids.append(filler + row if left else row + filler)
        mask.append(zeros + ones if left else ones + zeros)
    device = model.device
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def questions_of(atlas: Atlas) -> dict[str, list[Sentence]]:
    """Return the evaluation prompts and answers by group.

    ``trained``: every fact in each trained wording; ``held_out``: every fact in each held-out
    wording; ``two_hop_stated`` and ``two_hop_unstated``: two-hop statements in and out of the
    training text.
    """
    groups: dict[str, list[Sentence]] = {
        name: [] for name in ("trained", "held_out", "two_hop_stated", "two_hop_unstated")
    }
    for triple in atlas.triples:
        answer = atlas.entities[triple[2]].text
        for group, wordings in (
            ("trained", atlas.trained_wordings(triple)),
            ("held_out", atlas.held_out_wordings(triple)),
        ):
            groups[group] += [Sentence(atlas.prompt(triple, w), answer) for w in wordings]
        for (_, relation, end), prompt in atlas.hops(triple):
            stated = "stated" if states_two_hops(triple, relation) else "unstated"
            groups[f"two_hop_{stated}"].append(Sentence(prompt, atlas.entities[end].text))
    return groups


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    atlas: Atlas,
    limit: int | None = None,
    seed: int = 0,
) -> dict[str, Count]:
    """Evaluate a language model on the atlas, teacher-forced and generated.

    Args:
        model: A language model of one stack or two, in eval mode.
        tokenizer: Its tokenizer.
        atlas: The graph.
        limit: Maximum number of prompts per group; ``None``: all.
        seed: Seed of the sample of prompts, if there is a limit.

    Returns:
        ``<group>@tf`` and ``<group>@gen`` with the numbers of right answers and of prompts.
    """
    counts: dict[str, Count] = {}
    for group, every in questions_of(atlas).items():
        asked = len(every) if limit is None else min(limit, len(every))
        rows = random.Random(seed).sample(every, asked)
        counts[f"{group}@tf"] = (teacher_forced(model, tokenizer, rows), len(rows))
        counts[f"{group}@gen"] = (generated(model, tokenizer, rows), len(rows))
    return counts


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table of the evaluation counts of a packaged model.

    Args:
        argv: The model's name, ``atlas`` or ``atlas-t5``, or the folder of one trained again;
            ``None`` reads ``sys.argv``.
    """
    from rich.console import Console
    from rich.table import Table

    from lightning_edit.atlas import load_atlas

    parser = argparse.ArgumentParser(prog="python -m lightning_edit.atlas.evaluate")
    parser.add_argument("model", nargs="?", default="atlas", help="atlas, atlas-t5, or a folder")
    atlas = load_atlas()
    model, tokenizer = load_language_model(parser.parse_args(argv).model)
    counts = evaluate(model, tokenizer, atlas)
    table = Table("questions", "mode", "right", "asked", "exact match")
    for name, (right, asked) in counts.items():
        group, mode = name.split("@")
        table.add_row(group, mode, str(right), str(asked), f"{share((right, asked)):.4f}")
    console = Console()
    console.print(f"{len(atlas.triples)} facts, {len(sentences(atlas))} training sentences")
    console.print(table)


if __name__ == "__main__":
    main()
