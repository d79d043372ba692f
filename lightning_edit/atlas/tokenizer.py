"""Byte-level BPE tokenizer of the atlas language model, trained with a small vocabulary.

Byte-level, so that any text can be encoded; small on purpose, so that most subjects have several
tokens and the choice of the subject's last token matters.
"""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

#: BOS, EOS and padding token in one.
END_OF_TEXT = "<|endoftext|>"


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, max_length: int
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer whose post-processor adds a BOS token to every text.

    Args:
        texts: Training text.
        vocab_size: Number of tokens, including the 256 bytes and the special token.
        max_length: Maximum input length of the model in tokens.
    """
    core = Tokenizer(models.BPE())
    # With a prefix space, a name has the same tokens at the start of a text as inside it.
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    byte_level = processors.ByteLevel(trim_offsets=True)
    begin = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A",
        pair=f"{END_OF_TEXT} $A {END_OF_TEXT} $B",
        special_tokens=[(END_OF_TEXT, core.token_to_id(END_OF_TEXT))],
    )
    core.post_processor = processors.Sequence([byte_level, begin])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers has no types here
        tokenizer_object=core,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )
