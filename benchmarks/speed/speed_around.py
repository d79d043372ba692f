"""What surrounds the edits: evaluation, statistics, and how cost grows with the batch."""

import argparse
from dataclasses import replace
from typing import Any

import torch
from reference import force_one_by_one, generate_one_by_one, moments_layer_by_layer
from speed_editing import loss_difference, ratios, timed_edit, watching_stages
from stopwatch import Stopwatch

import lightning_edit.editors as editors
from lightning_edit import atlas
from lightning_edit.datamodules import AtlasDataModule
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.evaluation.outcomes import ScoredProbe, probes_of
from lightning_edit.evaluation.scorer import Scorer
from lightning_edit.models.loading import load_language_model
from lightning_edit.models.prompt_encoder import PromptEncoder
from lightning_edit.models.view import resolve
from lightning_edit.statistics.collect import collect


def evaluation(options: argparse.Namespace) -> dict[str, Any]:
    """Score probes in batches and one by one."""
    model, tokenizer = load_language_model("atlas")
    count = 20 if options.quick else 500
    requests = AtlasDataModule(limit=count, split="test").edit_requests()
    probes = [probe for request in requests for probe in probes_of(request)][:count]
    clocks = {"ours": Stopwatch(), "reference": Stopwatch()}
    Scorer(model, tokenizer).score(probes[:20])  # the first call of a process costs more
    with clocks["ours"].stage("both"):
        # As a run of edits does: what follows an answer is guessed once, from all probes.
        scorer = Scorer(model, tokenizer)
        after_answer = scorer.guess_after_answer(probes)
        scorer.layout = replace(scorer.layout, after_answer=after_answer)
        together = scorer.score(probes)
    with clocks["ours"].stage("tf"):
        forced = Scorer(model, tokenizer, modes=("tf",)).score(probes)
    with clocks["ours"].stage("gen"):
        generated = Scorer(model, tokenizer, modes=("gen",)).score(probes)
    with clocks["reference"].stage("tf"):
        losses = force_one_by_one(model, tokenizer, probes)
    limits = [answer_limit(tokenizer, probe) for probe in probes]
    with clocks["reference"].stage("gen"):
        texts = generate_one_by_one(model, tokenizer, probes, limits)
    same = [
        a.generated == b.generated == text
        for a, b, text in zip(generated, together, texts, strict=True)
    ]
    record: dict[str, Any] = {
        "model": "atlas",
        "probes": len(probes),
        "seconds_per_probe": {who: clock.per(len(probes)) for who, clock in clocks.items()},
        "agreement": {
            "nats_max": max(loss_difference(one, losses) for one in (forced, together)),
            "same_texts": sum(same) / len(same),
        },
        "at_least": 8.0,
    }
    for seconds in record["seconds_per_probe"].values():
        for times in seconds.values():
            # The library does both at once; what one mode tells the other is not computed again.
            times.setdefault("both", round(times["tf"] + times["gen"], 6))
    record["ratio"] = ratios(record["seconds_per_probe"])
    return record


def answer_limit(tokenizer: Any, item: ScoredProbe) -> int:
    """Return the new tokens that the library allows a probe: its longest answer and eight more."""
    pairs = [
        answer
        for _, answer in PromptEncoder.of(tokenizer).pairs(
            (item.probe.prompt, text) for text in item.probe.answers
        )
    ]
    return -(-(max(map(len, pairs)) + 8) // 8) * 8


def statistics_of_layers(options: argparse.Namespace) -> dict[str, Any]:
    """Collect second moments of all layers in one pass, and in one pass a layer."""
    model, tokenizer = load_language_model("atlas")
    view = resolve(model)
    layers = list(range(view.num_blocks))
    texts = atlas.corpus(shuffled=True)[: 200 if options.quick else 1000]
    names = [view.down_projection(layer) for layer in layers]
    clocks = {"ours": Stopwatch(), "reference": Stopwatch()}
    with clocks["ours"].stage("one_pass"):
        found = collect(model, tokenizer, texts, layers)
    with clocks["ours"].stage("pass_a_layer"):
        for layer in layers:
            collect(model, tokenizer, texts, [layer])
    with clocks["reference"].stage("one_pass"):
        wanted = moments_layer_by_layer(model, tokenizer, texts, names, rows=100)
    apart = [
        float((found.matrices[name] - wanted[name]).norm() / wanted[name].norm()) for name in names
    ]
    seconds = {who: clock.per(1) for who, clock in clocks.items()}
    return {
        "model": "atlas",
        "layers": len(layers),
        "tokens": found.tokens,
        "seconds": seconds,
        "ratio": ratios(seconds)
        | {
            "own_code_a_layer_a_time": {
                unit: round(times["pass_a_layer"] / times["one_pass"], 2)
                for unit, times in seconds["ours"].items()
            }
        },
        "at_least": 0.8 * len(layers),
        "agreement": {"relative_max": max(apart)},
    }


def scaling(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure the cost of an edit in batches of growing size.

    Requests of a batch are searched in passes of a fixed number of rows, so beyond some size only
    keys and solve are measured, with targets that repeat those already found: values cost nothing.
    """
    model, tokenizer = load_language_model("atlas")
    sizes = (10, 20, 40) if options.quick else (10, 30, 100, 300, 1000, 2000)
    searched = 20 if options.quick else 100
    requests = AtlasDataModule(limit=max(sizes), split="train").edit_requests()
    found = []
    for size in sizes:
        editor: Any = editors.MEMIT(clamp=0.75).bind(model, tokenizer)
        clock, batch = Stopwatch(), encode_batch(tokenizer, requests[:size])
        if size <= searched:
            timed_edit(editor, requests[:size], clock)
            targets = clock.last["search"]
        else:
            lines = torch.arange(size) % len(targets.losses)
            many = replace(
                targets,
                delta=targets.delta[lines],
                initial=targets.initial[lines],
                losses=[0.0] * size,
                steps=[0] * size,
            )
            with watching_stages(editor, clock), clock.stage("write"):
                editor.write(batch, many)
        found.append(
            {
                "editor": "MEMIT",
                "model": "atlas",
                "edits": size,
                "seconds_per_edit": clock.per(size),
            }
        )
    return found
