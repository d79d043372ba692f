"""A model's `generate` while edits on it decide once a prompt: where the prompts of its calls end.

A call inside `generate` may read more than the prompt (prompt lookup and assisted decoding put
drafted tokens behind it; without a KV cache the answer is read again at every step) or less (in
chunks, or the last turn of a conversation behind a KV cache), which only `generate` can tell.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from lightning_edit.exceptions import ArchitectureError

_NAME = "generate"
#: Ways of generating that put several prompts into one row.
_BATCHED = ("generate_batch", "init_continuous_batching", "continuous_batching_context_manager")


class Generation:
    """One call of `generate` of a decoder that is under way.

    Args:
        given: Token ids (b, t), or embeddings (b, t, d), that it was given; ``None``: it begins
            with a BOS of its own.
        mask: Attention mask that it was given, one row a prompt; ``None``: none.
        is_draft: Whether it drafts for another `generate`, which checks every token, so that what
            it cannot know (after which of its tokens a prompt ends) changes no answer.
    """

    def __init__(
        self, given: Tensor | None, mask: Tensor | None = None, is_draft: bool = False
    ) -> None:
        self.given = given
        self.mask = mask
        self.is_draft = is_draft
        self.has_begun = False
        self.length = 1 if given is None else max(given.shape[1], 1)
        self.ends: Int[Tensor, " b"] | None = None

    def reads(self, read: Tensor, filled: int) -> bool:
        """Whether a forward call reads the prompts, or what is left of them behind a KV cache.

        Other calls inside `generate` are somebody's own (a stopping criterion that asks the model),
        or go on behind the prompts.

        Args:
            read: Token ids or embeddings that the call reads.
            filled: Tokens in its KV cache.
        """
        rows, length = read.shape[:2]
        given = self.given
        if given is None:
            return not filled
        if rows % len(given) or (self.has_begun and (filled or length < self.length)):
            return False
        if read.dim() != given.dim():  # ids were given: soft prompts of PEFT stand before them
            if self.has_begun or filled or read.dim() < given.dim():
                return self.ends is not None and len(self.ends) == rows and not filled
            self.mask, self.length = None, length
            return True
        expected = given.to(read.device).repeat_interleave(rows // len(given), 0)
        if filled:
            return length <= self.length and torch.equal(expected[:, -length:], read)
        common = min(length, self.length)
        return torch.equal(expected[:, :common], read[:, :common])

    def real_positions(self, rows: int, length: int) -> Bool[Tensor, "b t"] | None:
        """Return which positions of a call that reads the prompts are no padding.

        Args:
            rows: Rows of the call; several for each prompt with beams.
            length: Its positions.

        Returns:
            The positions; ``None`` if `generate` was given no mask of these prompts.
        """
        given = self.mask
        if given is None or given.dim() != 2 or rows % len(given) or given.shape[1] > length:
            return None
        prompts = given.bool().repeat_interleave(rows // len(given), 0)
        return nn.functional.pad(prompts, (0, length - given.shape[1]), value=True)

    def prompt_ends(self, real: Bool[Tensor, "b t"], filled: int, known: bool) -> Int[Tensor, " b"]:
        """Return the position of each prompt's last token in a call that reads the prompts.

        Args:
            real: Positions of the call's input that are no padding.
            filled: Tokens in its KV cache; the positions mean nothing if there are some.
            known: Whether where prompts end was known when the cache was filled.

        Raises:
            ArchitectureError: If the call reads only a part of the prompt.
        """
        rows, length = real.shape
        self.has_begun = True
        if filled:
            if not self.is_draft and (length > 1 or not known):
                raise ArchitectureError(
                    f"`generate` reads {length} tokens of the prompt behind a KV cache of {filled}"
                    ", but edits on this model decide for whole prompts, which a cache of an "
                    "earlier turn, or of a part of the prompt, does not hold; give the whole text "
                    "without `past_key_values`"
                )
            return last_real(real)
        if length < self.length and not self.is_draft:
            raise ArchitectureError(
                f"`generate` reads {length} of the prompt's {self.length} tokens at once, but edits"
                " on this model decide at the end of the whole prompt; set `prefill_chunk_size` to "
                "None, or take a model that reads its prompts as a whole"
            )
        if self.ends is None or len(self.ends) != rows:
            self.ends = last_real(real[:, : self.length])
        return self.ends


def last_real(real: Bool[Tensor, "b t"]) -> Int[Tensor, " b"]:
    """Return each row's last position that is no padding; 0 if all are padding.

    Args:
        real: Positions that are no padding.
    """
    steps = torch.arange(real.shape[1], device=real.device)
    return torch.where(real, steps, -1).amax(1).clamp_min(0)


@dataclass(frozen=True)
class WatchedGenerate:
    """In the place of a model's `generate`: says that one begins and ends.

    A copy of it, made together with the model (`copy.deepcopy`), is that of the copy.

    Args:
        model: The model, not a wrapper of it.
        own: A `generate` that another library has put on the model; ``None``: its class's.
        begin: Told of each :class:`Generation` that begins; what it returns is called at its end.
    """

    model: Any
    own: Callable[..., Any] | None
    begin: Callable[[Generation], Callable[[], None]]

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        """The model's own `generate`, whose signature this has."""
        method: Callable[..., Any] = getattr(type(self.model), _NAME).__get__(self.model)
        return method if self.own is None else self.own

    @property
    def _settings(self) -> Any:
        return getattr(self.model, "generation_config", None)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Generate with the model's own `generate`, between the two notes.

        Args:
            args: Its arguments.
            kwargs: Its keyword arguments.

        Returns:
            What it returns.

        Raises:
            ArchitectureError: If it reads the prompt in parts (:meth:`Generation.prompt_ends`), or
                asks about another prompt meanwhile (classifier-free guidance).
        """
        config = args[1] if len(args) > 1 else kwargs.get("generation_config")
        scales = [getattr(one, "guidance_scale", None) for one in (config, self._settings)]
        scale = next((one for one in scales if one is not None), None)
        if kwargs.get("guidance_scale", scale) not in (None, 1):
            raise ArchitectureError(
                "classifier-free guidance reads another prompt inside `generate`, for which edits "
                "on this model cannot decide; set `guidance_scale` to None (here or in the model's "
                "`generation_config`)"
            )
        is_draft = bool(getattr(config, "is_assistant", None))
        end = self.begin(Generation(_given(args, kwargs), kwargs.get("attention_mask"), is_draft))
        try:
            return self.__wrapped__(*args, **kwargs)
        finally:
            end()

    @classmethod
    def put(cls, model: nn.Module, begin: Callable[[Generation], Callable[[], None]]) -> None:
        """Put it in the place of a decoder's `generate`, if the model has one.

        Args:
            model: The model, not a wrapper of it.
            begin: See the class.
        """
        if hasattr(type(model), _NAME):
            model.__dict__[_NAME] = cls(model, model.__dict__.get(_NAME), begin)
        for name in _BATCHED:
            if hasattr(type(model), name):
                model.__dict__[name] = _Refused(name, model.__dict__.get(name))

    @staticmethod
    def remove(model: nn.Module) -> None:
        """Give a model its own ways of generating back.

        Args:
            model: The model, not a wrapper of it.
        """
        for name in (_NAME, *_BATCHED):
            found = model.__dict__.get(name)
            if isinstance(found, WatchedGenerate | _Refused):
                del model.__dict__[name]
                if found.own is not None:
                    model.__dict__[name] = found.own


@dataclass(frozen=True)
class _Refused:
    """In the place of a way of generating that puts several prompts into one row.

    Args:
        name: Its name.
        own: What another library has put on the model; ``None``: its class's.
    """

    name: str
    own: Callable[..., Any] | None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise ArchitectureError(
            f"`{self.name}` puts several prompts into one row, and edits on this model decide once "
            "a prompt; call `generate` with the prompts as rows of a batch"
        )


def _given(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Return what `generate` is to read; ``None`` where it begins with a BOS of its own."""
    found = [kwargs.get("inputs_embeds"), args[0] if args else None]
    found += [kwargs.get(name) for name in ("inputs", "input_ids")]
    return next((one for one in found if isinstance(one, Tensor) and one.shape[1]), None)
