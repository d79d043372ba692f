"""A model that an editor cannot edit is refused with the reason and a way out."""

import pytest

from lightning_edit.editors import Editor
from lightning_edit.exceptions import ArchitectureError
from lightning_edit.models.weights import weights_hash
from tests.editors.test_contract import EDITORS, make
from tests.models.tiny import TINY, build_tokenizer

DECODER_ONLY = [one for one in EDITORS if make(one).architectures == ("decoder-only",)]


@pytest.mark.parametrize("family", ["t5", "bart"])
@pytest.mark.parametrize("editor_class", DECODER_ONLY, ids=lambda editor: editor.__name__)
def test_encoder_decoder_models_are_refused(editor_class: type[Editor], family: str) -> None:
    model = TINY[family]()
    before = weights_hash(model)
    editor = make(editor_class)
    with pytest.raises(ArchitectureError) as caught:
        editor.bind(model, build_tokenizer(eos=True))
    told = str(caught.value)
    assert told.startswith(f"{editor_class.__name__} edits decoder-only models")
    assert f"{type(model).__name__} is encoder-decoder: " in told
    assert editor.decoder_only_because in told
    assert "encoder" in editor.decoder_only_because
    assert "such as GPT-2, Llama" in told
    assert weights_hash(model) == before


def test_a_wrapper_gives_its_hosts_reason() -> None:
    editors = {editor.__name__: editor for editor in EDITORS}
    locate = editors["MEMIT"].decoder_only_because
    assert editors["RECT"](editor=make(editors["MEMIT"])).decoder_only_because == locate
    assert editors["RECT"](editor=make(editors["FT"])).decoder_only_because != locate


def test_an_editor_that_can_is_named() -> None:
    class BothKinds(Editor):
        """Edits every kind of model."""

        architectures = ("decoder-only", "encoder-decoder")

    with pytest.raises(ArchitectureError, match=r"use .*BothKinds, .*or take a model"):
        make(EDITORS[0]).bind(TINY["t5"](), build_tokenizer(eos=True))
