"""How answers end: end of turn or EOS, as what is learnt and where a generation stops."""

from typing import Any

from lightning_edit.exceptions import ConfigError
from lightning_edit.models.chat_template import end_of_turn
from lightning_edit.models.prompt_format import PromptFormat


class AnswerEnds:
    """Tokens that end an answer, of a tokenizer with a format of prompts."""

    tokenizer: Any
    form: PromptFormat
    two_stacks: bool

    def end_tokens(self, model: Any) -> list[int]:
        """Return the tokens at which a generation ends, the end of a chat's turn included.

        Args:
            model: A Hugging Face language model.
        """
        own = model.generation_config.eos_token_id
        ends = {*(own if isinstance(own, list) else [own]), self.tokenizer.eos_token_id}
        ends.add(self._turn_end())
        return sorted(token for token in ends if token is not None)

    def answer_end(self) -> int:
        """Return the token that ends an answer: a chat's end of turn, else EOS.

        Raises:
            ConfigError: If the tokenizer has none.
        """
        end = self._own_end()
        if end is None:
            raise ConfigError(
                f"{type(self.tokenizer).__name__} has no EOS token, so an answer has no end to "
                "learn; set tokenizer.eos_token, or leave the end out (end_answers=False, of "
                "LocFT-BF end_token=False)"
            )
        return end

    def learnt(self, answer: tuple[int, ...]) -> tuple[int, ...]:
        """Return the tokens that an edit writes: the answer, with its end where the format says so.

        Args:
            answer: Token ids of the answer.

        Raises:
            ConfigError: If the tokenizer has no token for an end.
        """
        return (*answer, self.answer_end()) if self.form.end_answers and answer else answer

    def labels(self, model: Any, answer: tuple[int, ...]) -> tuple[int, ...]:
        """Return the tokens that an answer is learnt as: with two stacks its EOS belongs to them.

        A decoder of two stacks writes the answer and nothing else, and the labels of T5 and BART
        end with EOS. With one stack an answer stands in running text, and is learnt without an end.

        Args:
            model: The language model.
            answer: Token ids of the answer.
        """
        if not self.two_stacks:
            return answer
        own = self._own_end()
        # A tokenizer may lack an EOS that the model has.
        end = tuple(self.end_tokens(model)[:1]) if own is None else (own,)
        return answer if answer[-1:] == end else (*answer, *end)

    def _own_end(self) -> int | None:
        """Return a chat's end of turn, else the tokenizer's EOS; ``None`` where it has none."""
        turn = self._turn_end()
        eos: int | None = self.tokenizer.eos_token_id
        return eos if turn is None else turn

    def _turn_end(self) -> int | None:
        """Return the special token that ends a chat's turn; ``None`` where there is none."""
        if not self.form.chat:
            return None
        text = end_of_turn(self.tokenizer, self.form)
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        known = {*self.tokenizer.all_special_ids, *self.tokenizer.added_tokens_decoder}
        return ids[0] if ids and ids[0] in known else None
