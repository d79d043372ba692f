"""Held-out texts of the atlas: not in the training text, and not edited by the test split."""

import random

from lightning_edit.atlas.graph import load_atlas
from lightning_edit.atlas.requests import split_facts
from lightning_edit.atlas.text import Sentence


def held_out_texts(count: int) -> list[str]:
    """Return held-out texts: two sentences each, validation facts in held-out wordings.

    They are plain English about geography, so they suit other language models as well.

    Args:
        count: Number of texts; 500 at most.
    """
    atlas = load_atlas()
    found = [
        Sentence(atlas.prompt(fact, wording), atlas.entities[fact[2]].text).text
        for fact in split_facts(atlas, "val")
        for wording in atlas.held_out_wordings(fact)
    ]
    random.Random("held-out texts").shuffle(found)
    return [f"{first} {second}" for first, second in zip(found[::2], found[1::2], strict=False)][
        :count
    ]
