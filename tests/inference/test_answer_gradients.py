"""Gradients at answer tokens alone are those of the whole pass."""

import pytest
import torch

from lightning_edit.inference.answer_gradients import AnswerFactors, answer_factors
from lightning_edit.inference.hooks import capture
from lightning_edit.inference.token_factors import token_factors
from lightning_edit.models.view import resolve
from tests.models.tiny import CONFIGS, MORE, VOCAB, break_token, build_tiny

STACKS = ("t5", "bart", "mbart", "pegasus")
DECODERS = [name for name in (*CONFIGS, *MORE) if name not in STACKS]
#: Prompts and answers of several lengths; the last prompt leaves nothing in front of it.
ROWS = [(7, 2), (5, 1), (9, 4), (5, 3)]


def made(sizes: list[tuple[int, int]]) -> list[tuple[list[int], list[int]]]:
    generator = torch.Generator().manual_seed(0)

    def some(count: int) -> list[int]:
        return torch.randint(4, VOCAB, (count,), generator=generator).tolist()

    return [(some(prompt), some(answer)) for prompt, answer in sizes]


@pytest.mark.parametrize("sizes", [ROWS, [*ROWS, (1, 2)]], ids=["prefix", "no-prefix"])
@pytest.mark.parametrize("family", DECODERS)
def test_equals_the_whole_pass(family: str, sizes: list[tuple[int, int]]) -> None:
    model = build_tiny(family).double().requires_grad_(False)
    view, rows = resolve(model), made(sizes)
    names = [view.down_projection(0), *view.block(2).mlp_up]
    before = {name: value.clone() for name, value in model.named_parameters()}
    with torch.no_grad():
        found = answer_factors(view, rows, names)
    mean, whole = token_factors(model, rows, names, each=True)
    answers = torch.tensor([size for _, size in sizes])
    torch.testing.assert_close(
        float((found.loss * answers).sum() / answers.sum()), mean, rtol=1e-5, atol=0
    )
    at = [
        (row, prompt - 1 + offset)
        for row, (prompt, answer) in enumerate(sizes)
        for offset in range(answer)
    ]
    lines, places = torch.tensor(at).unbind(1)
    for name in names:
        for mine, theirs in zip(found.factors[name], whole[name], strict=True):
            # GPT-Neo computes attention in float32 whatever its weights are, newer models norms.
            wanted = theirs[lines, places]
            near = 1e-5 * float(wanted.abs().max())
            torch.testing.assert_close(mine, wanted, rtol=1e-5, atol=near)
    assert all(torch.equal(before[name], value) for name, value in model.named_parameters())


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_only_what_predicts_the_answers_has_a_graph(family: str) -> None:
    view = resolve(build_tiny(family).requires_grad_(False))
    (prompt, answer), *others = made(ROWS)
    rows = [(prompt, answer), (prompt, answer[:1]), *others]
    name = view.down_projection(0)
    tokens = {True: 0, False: 0}

    def count(_: torch.nn.Module, args: tuple[torch.Tensor], output: torch.Tensor) -> None:
        tokens[torch.is_grad_enabled()] += args[0].shape[:-1].numel()

    handle = view.model.get_submodule(name).register_forward_hook(count)
    answer_factors(view, rows, [name])
    handle.remove()
    assert tokens[True] == sum(len(given) for _, given in rows)
    # The prompt of two answers runs once.
    assert tokens[False] == sum(len(given) - 1 for given, _ in rows[1:])


def test_the_order_of_modules_is_the_callers() -> None:
    view = resolve(build_tiny("llama").double().requires_grad_(False))
    names = [view.down_projection(layer) for layer in (2, 0)]
    found, turned = (
        answer_factors(view, made(ROWS), listed).factors for listed in (names, names[::-1])
    )
    for name in names:
        for one, other in zip(found[name], turned[name], strict=True):
            torch.testing.assert_close(one, other)


def finite_rows(found: AnswerFactors, sizes: list[tuple[int, int]]) -> list[bool]:
    sound = found.loss.isfinite()
    parts = [part.isfinite().all(1) for pair in found.factors.values() for part in pair]
    rows = torch.stack(parts).all(0).split([answer for _, answer in sizes])
    return [bool(one) and bool(row.all()) for one, row in zip(sound, rows, strict=True)]


@pytest.mark.parametrize("where", ["embedding", "last MLP"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gptj"])
def test_a_row_that_is_not_finite_breaks_no_other(family: str, where: str) -> None:
    model = build_tiny(family).double().requires_grad_(False)
    view, rows = resolve(model), made(ROWS)
    names = [view.down_projection(0), *view.block(1).mlp_up]
    sound = answer_factors(view, rows, names)
    prompt, _ = rows[1]
    if where == "embedding":
        others = {token for number in (0, 2, 3) for ids in rows[number] for token in ids}
        break_token(model, next(token for token in prompt if token not in others))
    else:
        # Only the gradient passes attention then.
        name = view.down_projection(view.num_blocks - 1)
        with torch.no_grad(), capture(model, {name: "input"}) as seen:
            model(torch.tensor([prompt]))
        key = seen[name][0, -1]

        def overflow(
            _: torch.nn.Module, args: tuple[torch.Tensor], output: torch.Tensor
        ) -> torch.Tensor:
            at = (args[0] - key).abs().amax(-1, keepdim=True) < 1e-4
            return output * torch.where(at, float("nan"), 1.0)

        model.get_submodule(name).register_forward_hook(overflow)
    found = answer_factors(resolve(model), rows, names)
    assert finite_rows(found, ROWS) == [True, False, True, True]
    lines = [line for line, (number, _) in enumerate(
        (number, place) for number, (_, size) in enumerate(ROWS) for place in range(size)
    ) if number != 1]  # fmt: skip
    torch.testing.assert_close(found.loss[[0, 2, 3]], sound.loss[[0, 2, 3]])
    for name in names:
        for mine, theirs in zip(found.factors[name], sound.factors[name], strict=True):
            torch.testing.assert_close(mine[lines], theirs[lines], rtol=1e-5, atol=1e-7)
