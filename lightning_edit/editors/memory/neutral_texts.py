"""Neutral texts: what memory editors compare an edit's prompt with where nothing else is given.

Short general statements and questions about everyday things, with no named entity, so that an edit
of a fact has nothing to do with them. Loads no torch.
"""

import zlib
from collections.abc import Sequence

_SUBJECTS = (
    "The weather this morning",
    "A bowl of warm soup",
    "The old wooden bridge",
    "My neighbour's garden",
    "The price of bread",
    "A good night's sleep",
    "The last train home",
    "Regular exercise",
    "The sound of the rain",
    "A simple recipe for pancakes",
)
_CONTINUATIONS = (
    "is something that most people",
    "was not what anyone had expected, so we",
    "has changed a lot over the years because",
    "can be explained in a few words:",
    "made everybody at the table",
    "depends on how much time you",
    "is easier to describe than to",
    "reminded the children of a",
    "costs less than it did when",
    "will be ready as soon as the",
)

#: A hundred unfinished sentences.
NEUTRAL_TEXTS = tuple(f"{start} {end}" for start in _SUBJECTS for end in _CONTINUATIONS)
#: The same by their last words: each group says the same of ten subjects, as facts of one relation
#: do.
SAME_WORDS = tuple(tuple(f"{start} {end}" for start in _SUBJECTS) for end in _CONTINUATIONS)


def choose_neutral(name: str, seed: int, texts: Sequence[str] = NEUTRAL_TEXTS) -> str:
    """Choose a text for a request, the same at every call.

    Args:
        name: Id of the request.
        seed: Seed of the edit.
        texts: Texts to choose from.
    """
    return texts[zlib.crc32(f"{seed}/{name}".encode()) % len(texts)]
