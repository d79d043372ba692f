"""Scope scores, routing and balanced loss against the authors' own numbers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModel

from lightning_edit.functional.scope import (
    balanced_bce,
    embedding_log_scores,
    mixed_log_probabilities,
    pair_log_scores,
    route,
)
from tests.conftest import shared_path

SCORES = [
    "scores_1head-float32",
    "scores_1head-float64",
    "scores_4heads-float32",
    "scores_4heads-float64",
    "scores_cos-float32",
    "scores_tanh_nosquare-float32",
]


def golden(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    folder: Path = shared_path(f"golden/SERAC/{name}")
    settings = json.loads((folder / "meta.json").read_text())["settings"]
    return load_file(folder / "tensors.safetensors"), settings


@pytest.mark.parametrize("name", SCORES)
def test_scores_losses_and_gradients_are_the_authors(name: str) -> None:
    stored, settings = golden(name)
    rtol = 1e-10 if name.endswith("64") else 1e-5
    edits = stored["edit_vectors"].clone().requires_grad_()
    questions = stored["query_vectors"].clone().requires_grad_()
    scores = embedding_log_scores(
        questions,
        edits,
        heads=settings["dist_heads"],
        scale=settings["scale"],
        cosine=settings["cos"],
        bounded=settings["bound_embeds"],
        squared=settings["square"],
    )
    torch.testing.assert_close(scores, stored["log_scores"], rtol=rtol, atol=rtol)
    torch.testing.assert_close(scores.exp(), stored["scores"], rtol=rtol, atol=rtol)
    found = route(scores)
    torch.testing.assert_close(found.score, stored["best_score"], rtol=rtol, atol=0)
    assert torch.equal(found.edit, stored["best_edit"])
    assert torch.equal(found.inside.long(), stored["route"])
    count = len(edits)
    outer, loc = scores[:count], scores[count : 2 * count]

    def loss(pairs: Tensor, everything: bool) -> Tensor:
        near = outer[pairs[:, 0], pairs[:, 1]]
        far = loc.flatten() if everything else loc.diagonal()
        return balanced_bce(
            torch.cat([near, far]), torch.cat([torch.ones_like(near), torch.zeros_like(far)])
        )

    none = stored["bce.pos_pairs"][:0]
    for stored_name, pairs, everything in (
        ("diagonal", stored["bce.pos_pairs"], False),
        ("all_negatives", stored["bce.pos_pairs"], True),
        ("diagonal_other_pairs", stored["bce.pos_pairs_other"], False),
        ("no_positives", none, False),
    ):
        torch.testing.assert_close(
            loss(pairs, everything), stored[f"bce.{stored_name}"], rtol=rtol, atol=rtol
        )
    for short, everything in (("diagonal", False), ("all", True)):
        value = loss(stored["bce.pos_pairs"], everything)
        gradients = torch.autograd.grad(value, (edits, questions), retain_graph=True)
        for side, gradient in zip(("edit", "query"), gradients, strict=True):
            wanted = stored[f"grad.{short}.{side}_vectors"]
            torch.testing.assert_close(gradient, wanted, rtol=10 * rtol, atol=10 * rtol)


@pytest.mark.parametrize("name", ["bce-float32", "bce-float64"])
@pytest.mark.parametrize("case", ["mixed", "with_exact_match", "only_positive", "only_negative"])
def test_balanced_bce_is_the_authors(name: str, case: str) -> None:
    stored, _ = golden(name)
    rtol = 1e-10 if name.endswith("64") else 1e-6
    scores = stored[f"{case}.log_scores"].clone().requires_grad_()
    loss = balanced_bce(scores, stored[f"{case}.labels"])
    torch.testing.assert_close(loss, stored[f"{case}.loss"], rtol=rtol, atol=0)
    loss.backward()
    assert scores.grad is not None
    torch.testing.assert_close(scores.grad, stored[f"{case}.grad"], rtol=10 * rtol, atol=10 * rtol)


def tiny_encoder(stored: dict[str, Tensor], settings: dict[str, Any]) -> Any:
    arguments = dict(settings["encoder_config"])
    config = AutoConfig.for_model(arguments.pop("model_type"), **arguments)
    encoder = AutoModel.from_config(config, attn_implementation="eager").eval()
    names = {k.removeprefix("enc."): v for k, v in stored.items() if k.startswith("enc.")}
    lacking = encoder.load_state_dict(names, strict=False)
    assert not lacking.missing_keys
    assert not lacking.unexpected_keys
    return encoder


@pytest.mark.parametrize("name", ["routing_hard", "routing_soft"])
def test_routing_from_token_ids_to_logits_is_the_authors(name: str) -> None:
    stored, settings = golden(name)
    encoder = tiny_encoder(stored, settings)
    with torch.no_grad():
        questions, edits = (
            encoder(stored[f"cls_{side}_ids"], stored[f"cls_{side}_mask"]).last_hidden_state[:, 0]
            for side in ("query", "edit")
        )
    scores = embedding_log_scores(questions, edits, scale=float(stored["scale"]))
    torch.testing.assert_close(scores, stored["log_scores"], rtol=1e-5, atol=1e-5)
    found = route(scores)
    assert torch.equal(found.edit, stored["best_edit"])
    assert torch.equal(found.inside.long(), stored["route"])
    base, other = stored["logits_no_edits"], stored["rep_logits"]
    if settings["soft_weighting"]:
        weight = found.score[:, None].expand(base.shape[:2])
        logits = mixed_log_probabilities(base, other, weight)
    else:
        logits = torch.where(found.inside[:, None, None], other, base)
    torch.testing.assert_close(logits, stored["logits"], rtol=0, atol=1e-4)


def test_a_pair_classifier_says_in_scope_with_its_first_output() -> None:
    logits = torch.tensor([[[2.0, 0.0], [0.0, 2.0], [1.0, 1.0]]])
    scores = pair_log_scores(logits).exp()
    torch.testing.assert_close(scores, torch.tensor([[0.8808, 0.1192, 0.5]]), rtol=1e-3, atol=0)
    assert route(scores.log()[:, 1:]).inside.tolist() == [False]  # a half is not in scope


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="cannot be cut into 3 equal heads"):
        embedding_log_scores(torch.zeros(1, 4), torch.zeros(1, 4), heads=3)
