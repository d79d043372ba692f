"""Byte-level BPE tokenizers of the atlas language models, trained with a small vocabulary.

Byte-level, so that any text can be encoded; small on purpose, so that most subjects have several
tokens and the choice of the subject's last token matters.
"""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

#: BOS, EOS and padding token in one, of the model of one stack.
END_OF_TEXT = "<|endoftext|>"
#: Padding and EOS tokens of the model of two stacks, in the order of their ids, as in T5.
PAD, END_OF_SEQUENCE = "<pad>", "</s>"


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, max_length: int, two_stacks: bool = False
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer.

    Args:
        texts: Training text.
        vocab_size: Number of tokens, including the 256 bytes and the special tokens.
        max_length: Maximum input length of the model in tokens.
        two_stacks: Whether an encoder reads the texts. Then EOS ends every text and there is no
            BOS, as in T5; otherwise a BOS begins every text.
    """
    core = Tokenizer(models.BPE())
    # With a prefix space, a name has the same tokens at the start of a text as inside it.
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, END_OF_SEQUENCE] if two_stacks else [END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    added = END_OF_SEQUENCE if two_stacks else END_OF_TEXT
    template = processors.TemplateProcessing(
        single=f"$A {added}" if two_stacks else f"{added} $A",
        pair=f"$A {added} $B {added}" if two_stacks else f"{added} $A {added} $B",
        special_tokens=[(added, core.token_to_id(added))],
    )
    core.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), template])
    begin = {} if two_stacks else {"bos_token": END_OF_TEXT}
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers has no types here
        tokenizer_object=core,
        **begin,
        eos_token=added,
        pad_token=PAD if two_stacks else END_OF_TEXT,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )
