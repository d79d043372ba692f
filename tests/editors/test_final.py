"""The message about subclassing a final editor shows code that works."""

import textwrap

import pytest
import torch

from lightning_edit import FT, ROME, Editor
from lightning_edit.edits.encoding import encode_batch
from tests.toy import toy_model, toy_requests, toy_tokenizer


@pytest.mark.parametrize("base", [FT, ROME])
def test_what_the_message_shows_works(base: type[Editor]) -> None:
    with pytest.raises(TypeError, match="is final") as caught:
        type("Mine", (base,), {})
    shown = str(caught.value).partition("\n\n")[2].rpartition("\n\n")[0]
    names: dict[str, object] = {}
    exec(compile(textwrap.dedent(shown), "message", "exec"), names)
    editor = names["editor"]
    assert isinstance(editor, Editor)
    if base is FT:
        model, tokenizer = toy_model(), toy_tokenizer()
        batch = encode_batch(tokenizer, toy_requests(1))
        mine = editor.bind(model, tokenizer).edit(batch)
        plain = FT().bind(model, tokenizer).edit(batch)
        assert all(
            torch.equal(mine.weights[name].dense(), plain.weights[name].dense())
            for name in plain.weights
        )
