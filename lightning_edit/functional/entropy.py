"""N-gram entropy and perplexity of text, on plain numbers. Torch is not needed."""

import math
import re
from collections import Counter
from collections.abc import Sequence

LOG_PERPLEXITY_CAP = 80.0
"""Cap on the mean loss in a perplexity, in nats: e⁸⁰ is finite in float32 too."""
_WORD = re.compile(r"\w+|[^\w\s]")


def perplexity(nll: float, tokens: int) -> float:
    """Return the perplexity: e to the mean negative log-probability of a token, e⁸⁰ at most.

    Args:
        nll: Sum over the tokens, in nats.
        tokens: Number of tokens.
    """
    return math.exp(min(nll / tokens, LOG_PERPLEXITY_CAP))


def at_cap(value: float) -> bool:
    """Return whether a perplexity is at the cap or is no number: outputs are not finite.

    Args:
        value: The perplexity.
    """
    return not value < math.exp(LOG_PERPLEXITY_CAP)


def words(text: str) -> list[str]:
    """Split a text into words and punctuation marks.

    Example:
        >>> words("It's in Rome.")
        ['It', "'", 's', 'in', 'Rome', '.']
    """
    return _WORD.findall(text)


def ngram_entropy(tokens: Sequence[str], n: int) -> float:
    """Return the entropy of a text's n-grams, in bits; 0 for a text shorter than ``n``.

    Args:
        tokens: Words.
        n: Words in an n-gram.

    Example:
        >>> ngram_entropy(["a", "b", "a", "b", "a"], 2)
        1.0
    """
    counts = Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
    total = sum(counts.values())
    # From 0.0, since the empty sum of negated terms would be minus zero.
    return 0.0 - sum(count / total * math.log2(count / total) for count in counts.values())


def weighted_entropy(text: str) -> float:
    """Return the weighted n-gram entropy: mean of 2/3 bigram and 4/3 trigram entropy, in bits.

    The fluency GE of COUNTERFACT (ROME, arXiv 2202.05262, section 3.4), before it is printed times
    100.

    Args:
        text: A generated text.
    """
    tokens = words(text)
    return (2 / 3 * ngram_entropy(tokens, 2) + 4 / 3 * ngram_entropy(tokens, 3)) / 2
