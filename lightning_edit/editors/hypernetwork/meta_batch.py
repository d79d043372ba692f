"""Meta-batches for hypernetwork training: edits, their rephrases and locality prompts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice, zip_longest
from random import Random
from typing import Any

from lightning_edit.datamodules.loader import StepRequests
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.exceptions import DataError
from lightning_edit.functional.measures import means_by_request
from lightning_edit.inference.answer_rows import AnswerRow
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

    def to(self, *args: object, **kwargs: object) -> "MetaBatch":
        """Return the batch unchanged on a device transfer: it holds token ids, without tensors.

        A step pads several choices of its rows, each on the device of the language model.

        Args:
            *args: As for tensors, not used.
            **kwargs: As for tensors, not used.
        """
        return self

    def split(self, size: int) -> list["MetaBatch"]:
        """Split into batches of consecutive edits, each with its own prompts.

        Args:
            size: Edits per batch; the last may have fewer.
        """
        parts = []
        for start in range(0, len(self.inner), size):
            own = range(start, start + size)
            window = slice(start, start + size)
            inner = EditBatch(
                self.inner.requests[window], self.inner.encoded[window], self.inner.seed
            )
            outer = [(edit - start, row) for edit, row in self.outer if edit in own]
            chosen = [n for n, (edit, _) in enumerate(self.locality) if edit in own]
            local = [(self.locality[n][0] - start, self.locality[n][1]) for n in chosen]
            kinds = tuple(self.kinds[n] for n in chosen) if self.kinds else ()
            parts.append(MetaBatch(inner, tuple(outer), tuple(local), kinds))
        return parts

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
    return EditRequest(
        request.id,
        prompt,
        request.target,
        old_target=request.old_target,
        rephrases=tuple(wordings),
        separator=request.separator,
    )


def _need_numbers(others: Any, what: str) -> None:
    """Refuse requests that cannot be drawn by number.

    Raises:
        DataError: If they have no length.
    """
    if not hasattr(others, "__len__") or not hasattr(others, "__getitem__"):
        raise DataError(
            f"{what} from the loader's data set by number, but got {type(others).__name__}, which "
            "has no numbers; use a map-style data set, or set other_facts to 0 and any_target to "
            "false"
        )


#: Requests that are looked at for a target of the same relation.
_LOOKED_AT = 32


def _another_target(request: EditRequest, rng: Random, others: Any) -> str:
    """Return the target of another request; the own one if all have that or the old answer."""
    drawn = [others[rng.randrange(len(others))] for _ in range(_LOOKED_AT)]
    fit = [one for one in drawn if one.target not in (request.target, request.old_target)]
    relation = request.triple[1] if request.triple else None
    same = [one for one in fit if one.triple and one.triple[1] == relation]
    chosen = (same or fit or [request])[0]
    target: str = chosen.target
    return target


class _EditedFacts:
    """What the edits of a batch change: their wordings, and subjects with relations if known."""

    def __init__(self, requests: Sequence[EditRequest]) -> None:
        self._edits: dict[tuple[str, ...], set[str]] = {}
        for request in requests:
            texts = [(text,) for text in (request.prompt, *request.rephrases)]
            facts = [request.triple[:2]] if request.triple else []
            for name in (*texts, *facts):
                self._edits.setdefault(name, set()).add(request.id)

    def asked_beside(self, edit: str, probe: Probe) -> bool:
        """Return whether a probe of an edit asks what another edit changes."""
        names = [(probe.prompt,), *(step[:2] for step in probe.path)]
        return any(self._edits.get(name, {edit}) != {edit} for name in names)


@dataclass(frozen=True)
class MetaBatchSampler:
    """Sampler of meta-batches: rephrases and locality prompts for each edit.

    Where edits are written together, a locality prompt never asks what another of them changes: in
    a batch of a hundred such prompts are some in a hundred, and each would train the network
    against an edit.

    Args:
        tokenizer: Tokenizer of the language model.
        own_probes: Locality prompts from each request's own probes.
        other_facts: Locality prompts from other requests, for each edit.
        any_wording: Use any wording of a request as the edit, and another as its rephrase.
        together: Whether the edits of a step, on all processes, are written as one update.
        any_target: Give an edit the target of another request, of the same relation if one is met.
    """

    tokenizer: Any
    own_probes: int
    other_facts: int
    any_wording: bool = False
    together: bool = True
    any_target: bool = False

    def sample(
        self,
        requests: Sequence[EditRequest],
        rng: Random,
        others: Any,
        beside: Sequence[EditRequest] | None = None,
    ) -> MetaBatch:
        """Sample a rephrase and locality prompts for each edit of a training step.

        Args:
            requests: The edits; one without rephrases is scored on its own prompt.
            rng: Random generator of all choices.
            others: Sequence (or map-style data set) of requests that provides the other facts.
            beside: The edits of this step on all processes; ``None``: ``requests``.

        Raises:
            DataError: If a request cannot be tokenised, or ``others`` has no length.
        """
        if self.any_target:
            _need_numbers(others, "any_target=True takes targets")
        edits, wordings = [], []
        for request in requests:
            view = _choose_wording(request, rng) if self.any_wording else request
            if self.any_target:
                target = _another_target(request, rng, others)
                view = replace(view, target=target, probes=(), triple=None)
            wordings.append(rng.choice(view.rephrases or (view.prompt,)))
            edits.append(view)
        inner = encode_batch(self.tokenizer, edits)
        outer: list[tuple[int, AnswerRow]] = []
        for edit, (view, wording) in enumerate(zip(edits, wordings, strict=True)):
            own = inner.encoded[edit]
            row: AnswerRow = (own.prompt_ids, own.target_ids)  # tokenised already
            if wording != view.prompt:
                row = self.tokenise(wording, view.target, view.separator, learnt=True)
            outer.append((edit, row))
        locality: list[tuple[int, AnswerRow]] = []
        edited = _EditedFacts((requests if beside is None else beside) if self.together else ())
        for edit, request in enumerate(requests):
            left_out = partial(edited.asked_beside, request.id)
            chosen = self.sample_locality_probes(request, rng, left_out)
            locality += [
                (edit, self.tokenise(probe.prompt, probe.answers[0], request.separator))
                for probe in chosen
            ]
        locality += self.sample_other_facts(requests, rng, others)
        return MetaBatch(inner, tuple(outer), tuple(locality))

    def sample_locality_probes(
        self, request: EditRequest, rng: Random, left_out: Callable[[Probe], bool] | None = None
    ) -> list[Probe]:
        """Sample locality probes of a request (answer unchanged), round-robin over their kinds.

        Args:
            request: The edit.
            rng: Random generator of the choice.
            left_out: Which probes are not taken: those that ask what another edit of the batch
                changes. Their old answer would contradict it.
        """
        kinds: dict[str, list[Probe]] = {}
        for probe in request.probes:
            if probe.expect == "unchanged":
                kinds.setdefault(probe.kind, []).append(probe)
        shuffled = [rng.sample(probes, len(probes)) for probes in kinds.values()]
        in_turn = chain.from_iterable(zip_longest(*rng.sample(shuffled, len(shuffled))))
        held = (p for p in in_turn if p is not None and not (left_out and left_out(p)))
        return list(islice(held, self.own_probes))

    def validation_batch(
        self, requests: Sequence[EditRequest], rng: Random, others: Any
    ) -> MetaBatch:
        """Build a validation batch: all rephrases and all locality probes of each edit.

        Args:
            requests: The edits.
            rng: Random generator for other facts, which are used where there are no probes.
            others: Sequence (or map-style data set) of requests that provides the other facts.

        Raises:
            DataError: If a request cannot be tokenised, or ``others`` has no length.
        """
        outer = [
            (edit, self.tokenise(probe.prompt, request.target, request.separator, learnt=True))
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
        locality = [
            (edit, self.tokenise(probe.prompt, probe.answers[0], requests[edit].separator))
            for edit, probe in probes
        ]
        inner = encode_batch(self.tokenizer, requests)
        drawn = () if locality else self.sample_other_facts(requests, rng, others)
        kinds = tuple(probe.kind for _, probe in probes)
        return MetaBatch(inner, tuple(outer), (*locality, *drawn), kinds)

    def tokenise(
        self,
        prompt: str,
        answer: str | None,
        separator: str | None = None,
        learnt: bool = False,
    ) -> AnswerRow:
        """Tokenise a prompt and answer; without an answer, only the next token after it is read.

        Args:
            prompt: The prompt.
            answer: The answer, if any.
            separator: Text between the two; ``None``: by rule.
            learnt: Whether an edit writes this answer, so with its end where the format says so.

        Raises:
            DataError: If the answer has no token.
        """
        try:
            encoder = PromptEncoder.of(self.tokenizer)
            (encoded,) = encoder.encode([PromptText(prompt, answer, separator=separator)])
        except ValueError as error:
            raise DataError(str(error)) from error
        return encoded.prompt, encoder.learnt(encoded.answer) if learnt else encoded.answer

    def sample_other_facts(
        self, requests: Sequence[EditRequest], rng: Random, others: Any
    ) -> list[tuple[int, AnswerRow]]:
        """Sample locality prompts from other requests, with their old (pre-edit) answers.

        Args:
            requests: The edits; their own prompts are left out.
            rng: Random generator of the choice.
            others: Sequence (or map-style data set) of requests.

        Raises:
            DataError: If ``others`` has no length.
        """
        count = self.other_facts * len(requests)
        if not count:
            return []
        _need_numbers(others, f"other_facts={self.other_facts} takes locality prompts")
        own = {text for request in requests for text in (request.prompt, *request.rephrases)}
        # Some spare ones are sampled, to replace those that are edited in this very step.
        drawn = rng.sample(range(len(others)), min(count + len(requests), len(others)))
        kept = [others[index] for index in drawn if others[index].prompt not in own]
        return [
            (number % len(requests), self.tokenise(other.prompt, other.old_target, other.separator))
            for number, other in enumerate(kept[:count])
        ]


@dataclass(frozen=True)
class MetaBatchCollate:
    """Collate function of a loader: samples and tokenises meta-batches, in its workers.

    What is sampled depends on the seed, and in training on epoch and batch index, alone: not on the
    number of workers, nor on how often the run was resumed.

    Args:
        sampler: Sampler of rephrases and locality prompts.
        stage: ``train``, ``val`` or ``test``.
        others: Requests that provide the other facts.
        seed: Seed of the choices.
    """

    sampler: MetaBatchSampler
    stage: str
    others: Any
    seed: int

    def __call__(self, requests: Sequence[EditRequest]) -> MetaBatch:
        """Build the meta-batch of one step.

        Args:
            requests: :class:`~lightning_edit.datamodules.loader.StepRequests`.

        Raises:
            DataError: If the requests do not carry epoch and batch index, or cannot be tokenised.
        """
        if not isinstance(requests, StepRequests):
            raise DataError(
                "a meta-batch is sampled by epoch and batch index, but the loader sent a "
                f"{type(requests).__name__} without them; build the loader with "
                "`lightning_edit.datamodules.loader.request_loader`, or give a DataLoader of plain "
                "requests"
            )
        if self.stage == "train":
            rng = Random(f"{self.seed}/{requests.epoch}/{requests.batch_idx}")
            return self.sampler.sample(requests, rng, self.others, requests.beside)
        rng = Random(f"{self.seed}/{self.stage}/{requests.batch_idx}")
        return self.sampler.validation_batch(requests, rng, self.others)
