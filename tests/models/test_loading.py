"""Models load frozen, in the dtype asked for, or the error says in one sentence what to do."""

import json
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from lightning_edit.exceptions import LightningEditError, ModelLoadError
from lightning_edit.models.loading import build_empty, load_language_model, load_tokenizer
from lightning_edit.models.weights import weights_hash
from tests.models.tiny import VOCAB, build_tiny, build_tokenizer

FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    build_tiny("gpt2").save_pretrained(folder)
    build_tokenizer(pad=False).save_pretrained(folder)
    return folder


@pytest.fixture
def broken(saved: Path, tmp_path: Path) -> Path:
    """A copy of the saved model for a test to damage."""
    for name in FILES:
        (tmp_path / name).write_bytes((saved / name).read_bytes())
    return tmp_path


def test_model_is_frozen_in_eval_mode_and_knows_its_name(saved: Path) -> None:
    model, tokenizer = load_language_model(str(saved))
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert weights_hash(model) == weights_hash(build_tiny("gpt2"))
    assert model.name_or_path == model.config._name_or_path == str(saved)
    assert (tokenizer.pad_token, tokenizer.padding_side) == ("</s>", "right")
    assert len(tokenizer) == VOCAB
    assert tokenizer.is_fast


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_dtype_is_the_one_asked_for(saved: Path, dtype: str) -> None:
    model, _ = load_language_model(str(saved), dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}


def test_encoder_decoder_models_load(tmp_path: Path) -> None:
    build_tiny("t5").save_pretrained(tmp_path)
    build_tokenizer(eos=True).save_pretrained(tmp_path)
    model, tokenizer = load_language_model(str(tmp_path))
    assert model.config.is_encoder_decoder
    assert tokenizer.pad_token == "<pad>"
    assert tokenizer("Paris").input_ids[-1] == tokenizer.eos_token_id


def test_build_empty_allocates_nothing(saved: Path) -> None:
    model = build_empty(str(saved), "bfloat16")
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("/no/such/folder", "/no/such/folder does not exist; give the folder of a saved model"),
        ("./relative", "relative does not exist"),
        ("a/b/c", "a/b/c does not exist"),
        (__file__, "is a file; give the folder"),
        (str(Path(__file__).parent), r"holds no config\.json.*save_pretrained"),
    ],
)
def test_wrong_paths(name: str, text: str) -> None:
    with pytest.raises(ModelLoadError, match=text):
        load_language_model(name)


def test_unknown_dtypes() -> None:
    with pytest.raises(ModelLoadError, match="'int4' is unknown; use one of float32, bfloat16"):
        load_language_model("atlas", "int4")


def test_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelLoadError, match="check the name and the network connection") as caught:
        load_language_model("nobody/no-such-model")
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, LightningEditError)


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_truncated_weights(broken: Path) -> None:
    path = broken / "model.safetensors"
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(ModelLoadError, match="could not load the weights of"):
        load_language_model(str(broken))


def test_weights_in_another_format_are_not_unpickled(broken: Path) -> None:
    (broken / "model.safetensors").unlink()
    torch.save(build_tiny("gpt2").state_dict(), broken / "pytorch_model.bin")
    with pytest.raises(ModelLoadError, match=r"convert them with `model\.save_pretrained"):
        load_language_model(str(broken))


def test_missing_weights_are_not_made_up(broken: Path) -> None:
    edit_config(broken, n_layer=5)
    with pytest.raises(
        ModelLoadError, match=r"lacks 24 weights of GPT2LMHeadModel.*save the model"
    ):
        load_language_model(str(broken))


def test_weights_of_another_size(broken: Path) -> None:
    edit_config(broken, n_embd=64)
    with pytest.raises(ModelLoadError, match="could not load the weights"):
        load_language_model(str(broken))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"model_type": "nope"}, "could not load the config .*model type `nope`"),
        ({"model_type": "vit"}, "could not load the structure"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantised and cannot be edited; give"),
    ],
)
def test_configs_that_cannot_be_edited(broken: Path, changes: dict[str, object], text: str) -> None:
    edit_config(broken, **changes)
    with pytest.raises(ModelLoadError, match=text):
        build_empty(str(broken))


def test_absent_tokenizer(broken: Path) -> None:
    for path in broken.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ModelLoadError, match=r"no tokenizer was found in .*save it beside"):
        load_language_model(str(broken))


def test_tokenizer_of_another_model(broken: Path) -> None:
    build_tokenizer(vocab_size=VOCAB + 5).save_pretrained(broken)
    with pytest.raises(ModelLoadError, match="has 102 tokens, its model embeds 97"):
        load_language_model(str(broken))


def test_tokenizer_without_padding_or_end(broken: Path) -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=build_tokenizer().backend_tokenizer)
    bare.save_pretrained(broken)
    with pytest.raises(ModelLoadError, match="neither a padding nor an end-of-text token; set"):
        load_tokenizer(str(broken))


@pytest.mark.parametrize(("bos", "eos"), [(False, False), (True, False), (False, True)])
def test_tiny_tokenizer_has_offsets_and_splits_words(bos: bool, eos: bool) -> None:
    tokenizer = build_tokenizer(bos=bos, eos=eos)
    text = "The mother tongue of Danielle Darrieux is"
    encoded = tokenizer(text, return_offsets_mapping=True)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    assert (ids[0] == tokenizer.bos_token_id) == bos
    assert (ids[-1] == tokenizer.eos_token_id) == eos
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    start = text.index("Darrieux")
    assert sum(start <= left < start + 8 for left, right in offsets if right > left) > 1


def test_bos_is_put_in_front_only_where_it_is_missing(tmp_path: Path) -> None:
    build_tiny("gpt2").save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    _, plain = load_language_model(str(tmp_path))
    _, with_bos = load_language_model(str(tmp_path), add_bos=True)
    ids = plain("a b")["input_ids"]
    assert with_bos("a b")["input_ids"] == [plain.bos_token_id, *ids]
    assert with_bos("a b", return_offsets_mapping=True)["offset_mapping"][1] == (0, 1)
