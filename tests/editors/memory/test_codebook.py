"""Radii, conflicts and replaced tokens of GRACE's codebook, by hand."""

import pytest
import torch

from lightning_edit.editors.memory.codebook import Codebook, CodebookAdapter, Replacement, replaced
from lightning_edit.inference.model_call import ModelCall


def at(*place: float) -> torch.Tensor:
    return torch.tensor(place)


def book(expansion: str = "coverage", *entries: tuple[float, tuple[int, ...]]) -> Codebook:
    found = Codebook(1.0, expansion)  # type: ignore[arg-type]
    for number, (place, label) in enumerate(entries):
        found.insert(at(place, 0.0), at(float(number)), label)
    return found


def radii(found: Codebook) -> list[float]:
    return [ball.radius for ball in found.balls]


def test_a_far_key_gets_a_ball_of_its_own() -> None:
    assert radii(book("coverage", (0.0, (1,)), (2.1, (2,)))) == [1.0, 1.0]


def test_a_near_key_of_the_same_answer_widens_the_ball_and_gives_its_value() -> None:
    found = book("coverage", (0.0, (1, 2)), (1.5, (1, 2)))
    assert radii(found) == [1.5]
    assert found.balls[0].value.tolist() == [1.0]
    assert found.balls[0].key.tolist() == [0.0, 0.0]
    inside = book("coverage", (0.0, (1,)), (0.5, (1,)))
    assert radii(inside) == [1.0]


def test_a_moving_average_moves_the_key_halfway() -> None:
    found = book("moving_average", (0.0, (1,)), (1.5, (1,)))
    assert radii(found) == [1.5]
    assert found.balls[0].key.tolist() == [0.75, 0.0]
    inside = book("moving_average", (0.0, (1,)), (0.5, (1,)))
    assert inside.balls[0].key.tolist() == [0.0, 0.0]


def test_two_answers_divide_the_distance() -> None:
    found = book("coverage", (0.0, (1,)), (1.5, (2,)))
    assert radii(found) == pytest.approx([0.75 - 1e-5, 0.75])
    # The same bag of ids is another answer; by the mean id it would be the same.
    assert len(book("coverage", (0.0, (1, 2)), (1.5, (2, 1))).balls) == 2


def test_the_same_prompt_edited_again_is_the_newest_edit() -> None:
    found = book("coverage", (3.0, (1,)), (3.0 + 1e-5, (2,)))
    assert radii(found) == [1.0]
    assert (found.balls[0].label, found.balls[0].value.tolist()) == ((2,), [1.0])


def test_a_query_reads_the_nearest_ball_that_holds_it() -> None:
    adapter = CodebookAdapter(book("coverage", (0.0, (1,)), (3.0, (2,))), "replace_last")
    queries = torch.tensor([[1.0, 0.0], [1.01, 0.0], [2.5, 0.1], [3.0, -1.2]])
    assert adapter.choose(queries).tolist() == [0, -1, 1, -1]


def call(begins: bool = True) -> ModelCall:
    real = torch.tensor([[False, True, True, True, True], [True, True, True, False, False]])
    return ModelCall(torch.tensor([2, 1]), real, begins, {}, packed=False)


@pytest.mark.parametrize(
    ("replacement", "rows"),
    [
        ("replace_last", [[0, 0, 1, 0, 0], [0, 1, 0, 0, 0]]),
        ("replace_prompt", [[0, 1, 0, 0, 0], [1, 0, 0, 0, 0]]),
        ("replace_all", [[0, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
    ],
)
def test_replaced_tokens(replacement: Replacement, rows: list[list[int]]) -> None:
    assert replaced(call(), replacement).int().tolist() == rows
    step = replaced(call(begins=False), replacement)
    assert bool(step.any()) == (replacement == "replace_all")


def test_a_generation_keeps_the_decision_and_replaces_no_further_token() -> None:
    adapter = CodebookAdapter(book("coverage", (0.0, (1,))), "replace_last")
    hidden, output = torch.full((2, 5, 2), 9.0), torch.zeros(2, 5, 1) - 7.0
    hidden[0, 2] = 0.1  # where its prompt ends
    first = call()
    changed = adapter.act(hidden, output, first)
    assert (changed != output).nonzero().tolist() == [[0, 2, 0]]
    step = ModelCall(torch.tensor([0, 0]), torch.ones(2, 1).bool(), False, first.decisions, False)
    assert torch.equal(adapter.act(hidden[:, 2:3], output[:, :1], step), output[:, :1])
