"""Meta-batches for hypernetwork training: edits, their rephrases and locality prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from random import Random
from typing import Any

from lightning_edit.edits.encoding import encode_batch
from lightning_edit.exceptions import DataError
from lightning_edit.functional.measures import means_by_request
from lightning_edit.inference.answers import AnswerRow
from lightning_edit.models.prompt_encoder import PromptEncoder, PromptText
from lightning_edit.types import EditBatch, EditRequest, Probe


@dataclass(frozen=True)
class MetaBatch:
    """Tokenised examples of one meta-learning step: edits, rephrases and locality prompts.

    Args:
        inner: The edits, from which the update is computed.
        outer: Prompts that the edited model must answer with the new answers, each with the index
            of its edit in ``inner``.
        locality: Prompts whose answers must not change, likewise.
        kinds: Probe kind of each locality prompt; empty where the prompts are not probes.
    """

    inner: EditBatch
    outer: tuple[tuple[int, AnswerRow], ...]
    locality: tuple[tuple[int, AnswerRow], ...]
    kinds: tuple[str, ...] = ()

    def scores(self, right: Sequence[float], kept: Sequence[float]) -> dict[str, list[float]]:
        """Average the scores of a validation batch within each request, by metric name.

        Args:
            right: Whether the new answer is top-1, of the edits' own prompts and then of ``outer``.
            kept: Share of unchanged top-1 tokens, of each locality prompt.

        Returns:
            One mean per request that has such a prompt.
        """
        own = len(self.inner)
        outer = [edit for edit, _ in self.outer]
        held = [edit for edit, _ in self.locality]
        return {
            "reliability/em@tf": means_by_request(right[:own], range(own)),
            "generalization/em@tf": means_by_request(right[own : own + len(outer)], outer),
            "locality/kept@tf": means_by_request(kept, held, self.kinds),
        }


def _choose_wording(request: EditRequest, rng: Random) -> EditRequest:
    wordings = [request.prompt, *request.rephrases]
    prompt = wordings.pop(rng.randrange(len(wordings)))
    return EditRequest(request.id, prompt, request.target, rephrases=tuple(wordings))


@dataclass(frozen=True)
class MetaBatchSampler:
    """Sampler of meta-batches: rephrases and locality prompts for each edit.

    Args:
        tokenizer: Tokenizer of the language model.
        own_probes: Locality prompts from each request's own probes.
        other_facts: Locality prompts from other requests, for each edit.
        any_wording: Use any wording of a request as the edit, and another as its rephrase.
    """

    tokenizer: Any
    own_probes: int
    other_facts: int
    any_wording: bool = False

    def sample(self, requests: Sequence[EditRequest], rng: Random, loader: Any) -> MetaBatch:
        """Sample a rephrase and locality prompts for each edit of a training step.

        Args:
            requests: The edits; one without rephrases is scored on its own prompt.
            rng: Random generator of all choices.
            loader: Loader whose data set provides the other facts.

        Raises:
            DataError: If a request cannot be tokenised, or the loader's data set has no length.
        """
        edits, outer = [], []
        for edit, request in enumerate(requests):
            view = _choose_wording(request, rng) if self.any_wording else request
            wording = rng.choice(view.rephrases or (view.prompt,))
            outer.append((edit, self.tokenise(wording, request.target)))
            edits.append(view)
        locality: list[tuple[int, AnswerRow]] = []
        for edit, request in enumerate(requests):
            chosen = self.sample_locality_probes(request, rng)
            locality += [(edit, self.tokenise(probe.prompt, probe.answers[0])) for probe in chosen]
        locality += self.sample_other_facts(requests, rng, loader)
        inner = encode_batch(self.tokenizer, edits)
        return MetaBatch(inner, tuple(outer), tuple(locality))

    def sample_locality_probes(self, request: EditRequest, rng: Random) -> list[Probe]:
        """Sample locality probes of a request (answer unchanged), round-robin over their kinds."""
        kinds: dict[str, list[Probe]] = {}
        for probe in request.probes:
            if probe.expect == "unchanged":
                kinds.setdefault(probe.kind, []).append(probe)
        shuffled = [rng.sample(probes, len(probes)) for probes in kinds.values()]
        in_turn = chain.from_iterable(zip_longest(*rng.sample(shuffled, len(shuffled))))
        return [probe for probe in in_turn if probe is not None][: self.own_probes]

    def validation_batch(
        self, requests: Sequence[EditRequest], rng: Random, loader: Any
    ) -> MetaBatch:
        """Build a validation batch: all rephrases and all locality probes of each edit.

        Args:
            requests: The edits.
            rng: Random generator for other facts, which are used where there are no probes.
            loader: Loader whose data set provides the other facts.

        Raises:
            DataError: If a request cannot be tokenised, or the loader's data set has no length.
        """
        outer = [
            (edit, self.tokenise(probe.prompt, request.target))
            for edit, request in enumerate(requests)
            for probe in request.all_probes()
            if probe.aspect == "generalization"
        ]
        probes = [
            (edit, probe)
            for edit, request in enumerate(requests)
            for probe in request.probes
            if probe.expect == "unchanged"
        ]
        locality = [(edit, self.tokenise(probe.prompt, probe.answers[0])) for edit, probe in probes]
        inner = encode_batch(self.tokenizer, requests)
        others = () if locality else self.sample_other_facts(requests, rng, loader)
        kinds = tuple(probe.kind for _, probe in probes)
        return MetaBatch(inner, tuple(outer), (*locality, *others), kinds)

    def tokenise(self, prompt: str, answer: str | None) -> AnswerRow:
        """Tokenise a prompt and answer; without an answer, only the next token after it is read.

        Raises:
            DataError: If the answer has no token.
        """
        try:
            (encoded,) = PromptEncoder.of(self.tokenizer).encode([PromptText(prompt, answer)])
        except ValueError as error:
            raise DataError(str(error)) from error
        return encoded.prompt, encoded.answer

    def sample_other_facts(
        self, requests: Sequence[EditRequest], rng: Random, loader: Any
    ) -> list[tuple[int, AnswerRow]]:
        """Sample locality prompts from other requests, with their old (pre-edit) answers.

        Args:
            requests: The edits; their own prompts are left out.
            rng: Random generator of the choice.
            loader: Loader whose data set provides the other requests.

        Raises:
            DataError: If the data set has no length.
        """
        count = self.other_facts * len(requests)
        if not count:
            return []
        data: Any = getattr(loader, "dataset", None)
        if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
            raise DataError(
                f"other_facts={self.other_facts} takes locality prompts from the loader's data set "
                f"by number, but got {type(data).__name__}, which has no numbers; use a map-style "
                "data set, or set other_facts to 0"
            )
        own = {text for request in requests for text in (request.prompt, *request.rephrases)}
        # Some spare ones are sampled, to replace those that are edited in this very step.
        drawn = rng.sample(range(len(data)), min(count + len(requests), len(data)))
        others = [data[index] for index in drawn if data[index].prompt not in own]
        return [
            (number % len(requests), self.tokenise(other.prompt, other.old_target))
            for number, other in enumerate(others[:count])
        ]
