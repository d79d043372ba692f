"""A delta is exact: norms, ranks, factors, files, and the bits it gives back."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lightning_edit.edits.delta import Delta, Dense, LowRank
from lightning_edit.exceptions import LedgerError
from lightning_edit.models.weights import weights_hash
from tests.models.tiny import build_tiny

pytestmark = pytest.mark.bits

NAME = "transformer.h.1.mlp.c_proj.weight"


def low_rank(rank: int, rows: int = 32, columns: int = 48, seed: int = 0) -> LowRank:
    torch.manual_seed(seed)
    return LowRank(torch.randn(rows, rank), torch.randn(rank, columns))


@pytest.mark.parametrize("rank", [1, 3, 40])
def test_norm_is_that_of_the_product(rank: int) -> None:
    update = low_rank(rank)
    assert update.norm() == pytest.approx(float(update.dense().norm()), rel=1e-12)
    assert update.rank == rank
    assert update.numel == rank * (32 + 48)
    delta = Delta(("a",), {"w": update, "b": Dense(torch.ones(4))}, {"s": torch.zeros(3)})
    assert delta.norm()["b"] == 2.0
    assert delta.rank() == {"w": rank, "b": 1}
    assert delta.numel() == update.numel + 4 + 3


def test_factors_that_fit_are_taken_as_they_are() -> None:
    update = low_rank(3)
    left, right, kept = Delta(("a",), {"w": update}).to_lora()["w"]
    assert left is update.left
    assert right is update.right
    assert kept == 1.0


def best_error(matrix: Tensor, rank: int) -> float:
    return float((torch.linalg.svdvals(matrix.double())[rank:] ** 2).sum().sqrt())


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("limit", [1, 2, 4])
def test_a_cut_is_the_best_one_and_says_what_it_keeps(dense: bool, limit: int) -> None:
    low = low_rank(5)
    update = Dense(low.dense().float()) if dense else low
    left, right, kept = Delta(("a",), {"w": update}).to_lora(limit)["w"]
    assert left.shape == (32, limit)
    error = float((left.double() @ right.double() - update.dense()).norm())
    assert error == pytest.approx(best_error(update.dense(), limit), rel=1e-5)
    assert kept == pytest.approx(1 - (error / update.norm()) ** 2, rel=1e-5)


def test_a_dense_update_of_low_rank_gets_that_rank() -> None:
    dense = Dense(low_rank(3).dense().float())
    left, right, kept = Delta(("a",), {"w": dense}).to_lora()["w"]
    assert left.shape == (32, 3)
    assert kept == pytest.approx(1.0, abs=1e-12)
    torch.testing.assert_close(left @ right, dense.value, rtol=1e-5, atol=1e-5)


def test_an_update_of_zeros_has_factors() -> None:
    left, right, kept = Delta(("a",), {"w": Dense(torch.zeros(4, 3))}).to_lora()["w"]
    assert kept == 1.0
    assert not (left @ right).any()


@pytest.mark.parametrize(
    "delta",
    [
        Delta(("a",), {"b": Dense(torch.ones(4))}),
        Delta(("a",), {"w": low_rank(1)}, {"codebook": torch.ones(2)}),
        Delta(("a",), {"w": low_rank(1)}, prompts={"a": "Imagine that"}),
    ],
)
def test_lora_refuses_what_it_cannot_hold(delta: Delta) -> None:
    with pytest.raises(LedgerError, match="--format delta or merged"):
        delta.to_lora()


def test_a_file_gives_back_everything(tmp_path: Path) -> None:
    update = low_rank(3)
    # Not contiguous on purpose: Conv1D code hands over transposed views.
    view = LowRank(update.left, update.right.mT.contiguous().mT)
    delta = Delta(
        ("ü", "b"),
        {"x.weight": view, "x.bias": Dense(torch.ones(4))},
        {"keys": torch.arange(6).reshape(2, 3)},
        {"ü": 'Imagine "that"'},
        {"loss": [0.5, 0.25]},
    )
    delta.save(tmp_path / "d.safetensors")
    again = Delta.load(tmp_path / "d.safetensors")
    assert again.request_ids == delta.request_ids
    assert again.prompts == delta.prompts
    assert again.info == delta.info
    low = again.weights["x.weight"]
    assert isinstance(low, LowRank)
    assert torch.equal(low.left, update.left)
    assert torch.equal(low.right, update.right)
    assert torch.equal(again.weights["x.bias"].dense(torch.float32), torch.ones(4))
    assert torch.equal(again.state["keys"], delta.state["keys"])
    assert [path.name for path in tmp_path.iterdir()] == ["d.safetensors"]


def test_a_delta_of_prompts_alone_can_be_kept(tmp_path: Path) -> None:
    Delta(("a",), prompts={"a": "Imagine"}).save(tmp_path / "d")
    assert not Delta.load(tmp_path / "d").is_empty


@pytest.mark.parametrize("content", [b"", b"not a delta", b"\x80\x04\x95pickle"])
def test_another_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "d").write_bytes(content)
    with pytest.raises(LedgerError, match=r"d cannot be read as a delta"):
        Delta.load(tmp_path / "d")
    with pytest.raises(LedgerError, match="cannot be read as a delta"):
        Delta.load(tmp_path / "absent")


def test_a_foreign_safetensors_file_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.ones(1)}, str(tmp_path / "d"))
    with pytest.raises(LedgerError, match="expected format lightning-edit-delta/1, got none"):
        Delta.load(tmp_path / "d")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_applied_gives_back_the_exact_bits_even_after_an_error(dtype: torch.dtype) -> None:
    model: nn.Module = build_tiny("gpt2").to(dtype)
    before = weights_hash(model)
    bias = NAME.replace("weight", "bias")
    delta = Delta(("a",), {NAME: low_rank(2), bias: Dense(torch.ones(32))})

    def fail() -> None:
        with delta.applied(model):
            assert weights_hash(model) != before
            raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        fail()
    assert weights_hash(model) == before


def test_applied_restores_when_an_update_does_not_fit() -> None:
    model = build_tiny("gpt2").to(torch.float16)
    before = weights_hash(model)
    bias = NAME.replace("weight", "bias")
    delta = Delta(("a",), {NAME: low_rank(1), bias: Dense(torch.full((32,), 1e30))})
    with pytest.raises(ValueError, match="not finite"), delta.applied(model):
        pytest.fail("the block must not run")
    assert weights_hash(model) == before


def test_a_delta_has_the_same_bytes_every_time(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    updates = {
        f"block.{number}.down": LowRank(
            torch.randn(6, 2, generator=draw), torch.randn(2, 8, generator=draw)
        )
        for number in (2, 10, 1)
    }
    history = {"keys/1": torch.randn(3, 8, generator=draw), "état\n": torch.ones(1)}
    info = {"loss": [0.1], "text": "Köln ⊂ 東京"}
    contents = set()
    for number in range(20):
        path = tmp_path / f"{number}.safetensors"
        Delta(("a", "b"), updates, prompts={"a": "x"}, info=info, history=history).save(path)
        contents.add(path.read_bytes())
    assert len(contents) == 1
    loaded = Delta.load(tmp_path / "0.safetensors")
    assert list(loaded.weights) == ["block.2.down", "block.10.down", "block.1.down"]
    assert list(loaded.history) == ["keys/1", "état\n"]
    assert loaded.info == info
    assert torch.equal(loaded.history["état\n"], torch.ones(1))
    loaded.save(tmp_path / "again.safetensors")
    assert {(tmp_path / "again.safetensors").read_bytes()} == contents


def test_a_delta_lies_in_memory_as_the_one_read_from_disk(tmp_path: Path) -> None:
    base = torch.randn(40, 33, generator=torch.Generator().manual_seed(0))
    update = {
        "z": LowRank(base[:7, :5].T.contiguous().T, base.mT[:5, 3:9].mT[:5]),
        "column": LowRank(base[:, :1].mT.contiguous().mT, base[3:4, 1:]),
        "bias": Dense(base[0, 5:]),
    }
    made = Delta(("a",), update, history={"keys": base[1:, 2:].mT})
    made.save(tmp_path / "delta.safetensors")
    read = Delta.load(tmp_path / "delta.safetensors")
    assert list(made.weights) == list(read.weights)
    for name, own in made.weights.items():
        pairs = zip(own.tensors().values(), read.weights[name].tensors().values(), strict=True)
        for one, other in [*pairs, (made.history["keys"], read.history["keys"])]:
            assert torch.equal(one, other)
            assert one.stride() == other.stride()
            assert one.storage_offset() == other.storage_offset() == 0
            assert one.data_ptr() % 64 == other.data_ptr() % 64
            assert one.untyped_storage().nbytes() == other.untyped_storage().nbytes()
