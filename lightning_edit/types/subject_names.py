"""Subject detection: locate the subject of a fact in its prompt, or guess it from capitals."""

import re

from lightning_edit.types.subjects import locate_subject

# Words that begin a sentence or question and are not part of a name.
_OPENER = re.compile(
    r"an?|the|th(is|at|ese|ose)|in|on|at|of|to|from|by|for|with|as|what|which|who|whom|whose|when|where"
    r"|why|how|is|are|was|were|does|do|did|has|have|had|can|could|will|would|name|tell",
    re.IGNORECASE,
)
_CONNECTOR = re.compile(r"of|the|de|da|di|del|della|der|van|von|la|le|du|des|al|bin|ibn")
_QUOTED = re.compile(r"[\"“«]([^\"”»]+)[\"”»]")


def locate(subject: str, prompt: str) -> int | None:
    """Return the offset of ``subject`` in ``prompt``; ignore case if there is no exact match.

    Example:
        >>> locate("france", "The capital of France is")
        15
    """
    start = locate_subject(prompt, subject)
    if start is not None:
        return start
    found = re.search(re.escape(subject), prompt, re.IGNORECASE)
    return found.start() if found else None


def candidates(prompt: str) -> list[str]:
    """List candidate subjects of a prompt: quoted spans, or else capitalised names.

    A heuristic by spelling alone: scripts without capitals give no candidates.

    Example:
        >>> candidates("What is the capital of New South Wales?")
        ['New South Wales']
        >>> candidates("The mother tongue of Marie Curie, born in Warsaw, is")
        ['Marie Curie', 'Warsaw']
    """
    quoted = [match.strip() for match in _QUOTED.findall(prompt) if match.strip()]
    if quoted:
        return list(dict.fromkeys(quoted))
    found: list[str] = []
    run: list[str] = []
    for word in [*prompt.split(), ""]:
        bare = re.sub(r"(?:['’]s)?[.,;:?!)]*$", "", word)
        named = bare[:1].isupper() and (bool(found or run) or not _OPENER.fullmatch(bare))
        if named or (run and (bare[:1].isdigit() or _CONNECTOR.fullmatch(word))):
            run.append(bare)
            if bare == word:
                continue
        while run and _CONNECTOR.fullmatch(run[-1]):
            run.pop()
        found += [" ".join(run)] if run else []
        run = []
    return list(dict.fromkeys(found))
