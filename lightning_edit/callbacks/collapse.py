"""Model-collapse callback: perplexity and n-gram entropy over a stream of edits or a training."""

from collections.abc import Sequence
from typing import Any

import torch
from torchmetrics import SumMetric

from lightning_edit.callbacks.base import Commit, EvalContext, Measurement, MeasurementCallback
from lightning_edit.evaluation.corpus import TextReader, fixed_texts
from lightning_edit.exceptions import NotFiniteError
from lightning_edit.functional.entropy import at_cap
from lightning_edit.functional.measures import NLL_CAP
from lightning_edit.metrics import NgramEntropy, Perplexity
from lightning_edit.metrics.aspects import to_floats


class CollapseCallback(MeasurementCallback):
    """Model collapse: perplexity on fixed texts and n-gram entropy of generated text.

    * ``collapse/perplexity`` (over all tokens), ``…_median``, ``…_clipped``, ``…_mean`` (over
      texts), ``…_ratio`` (to the pristine model);
    * ``collapse/ngram_entropy``: low for a model that repeats itself;
    * ``collapse/broken``: 1 if the ratio is above the bound or outputs are not finite; under the
      protocol ``single`` the share of edits that break the model;
    * ``collapse/first_broken``: number of edits after which the model was first broken.

    Definitions: ``docs/metrics.md``.

    Args:
        texts: A ``.txt`` or ``.jsonl`` file, or texts; ``None``: sentences of the embedded atlas
            that its model was not trained on. Other models need texts of their own domain.
        limit: Number of texts.
        max_perplexity_ratio: Above this ratio a model counts as broken. 2 is our choice; the
            authors of ME-PPL (arXiv 2402.09656) call a perplexity of 1000 collapsed.
        every_n_commits: Also measure perplexity every this many commits, so that ``first_broken``
            is exact to as many; ``None``: at evaluations only. Used by ``EditTrainer`` only.
        generations: Continuations to sample, each from the first words of one text.
        max_new_tokens: Tokens per continuation.
        top_k: Tokens to sample from; 5 as in COUNTERFACT.
        seed: Seed of the sampling.
        max_tokens: Texts are truncated to this many tokens.
        batch_size: Texts per batch.
        options: See :class:`~lightning_edit.callbacks.base.MeasurementCallback`.
    """

    def __init__(
        self,
        texts: str | list[str] | None = None,
        limit: int = 100,
        max_perplexity_ratio: float = 2.0,
        every_n_commits: int | None = None,
        generations: int = 10,
        max_new_tokens: int = 60,
        top_k: int = 5,
        seed: int = 0,
        max_tokens: int = 128,
        batch_size: int = 16,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.texts = texts
        self.limit = limit
        self.max_perplexity_ratio = max_perplexity_ratio
        self.every_n_commits = every_n_commits
        self.generations = generations
        self.max_new_tokens = max_new_tokens
        self.top_k = top_k
        self.seed = seed
        self.max_tokens = max_tokens
        self.batch_size = batch_size
        self.first_broken: int | None = None
        self._commits = 0
        self.require(
            limit=(limit >= 1, "1 or more"),
            max_perplexity_ratio=(max_perplexity_ratio > 0, "above 0"),
            every_n_commits=(
                every_n_commits is None or every_n_commits >= 1,
                "at least 1, or None",
            ),
            generations=(generations >= 0, "0 or more"),
            max_new_tokens=(max_new_tokens >= 1, "1 or more"),
            top_k=(top_k >= 1, "1 or more"),
            max_tokens=(max_tokens >= 2, "2 or more"),
            batch_size=(batch_size >= 1, "1 or more"),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the checkpoint state: baseline values, first broken step and commit count."""
        own = {"first_broken": self.first_broken, "commits": self._commits}
        return super().state_dict() | own

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the checkpoint state that :meth:`state_dict` returned.

        Args:
            state_dict: Plain containers.
        """
        super().load_state_dict(state_dict)
        self.first_broken, self._commits = state_dict["first_broken"], state_dict["commits"]

    def reset(self) -> None:
        """Reset the state before a new run."""
        super().reset()
        self.first_broken, self._commits = None, 0

    def measure(self, context: EvalContext) -> Measurement:
        """Measure perplexity and n-gram entropy.

        Args:
            context: The model.

        Raises:
            NotFiniteError: If outputs of the pristine model are not finite.
        """
        values, rows = read_perplexity(
            context,
            self.texts,
            self.limit,
            self.batch_size,
            self.max_tokens,
            baseline=self.before is None,
        )
        values |= self._compare_with_pristine(context, values)
        written = self._generate(context)
        metric = NgramEntropy().to(context.device)
        metric.update([row["generated"] for row in written])
        values |= to_floats(metric.compute())
        named = {f"collapse/{name}": value for name, value in values.items()}
        return Measurement(named, [*rows, *written])

    def on_commit(self, commit: Commit) -> None:
        """Measure perplexity every ``every_n_commits`` commits.

        Args:
            commit: The commit.
        """
        self._commits += 1
        due = self.every_n_commits is not None and self._commits % self.every_n_commits == 0
        context = commit.context
        if not due or context.single_edit:
            return
        values, _ = read_perplexity(
            context, self.texts, self.limit, self.batch_size, self.max_tokens
        )
        values |= self._compare_with_pristine(context, values)
        named = {f"{self.prefix}collapse/{name}": value for name, value in values.items()}
        commit.session.measures.add(type(self).__name__, context.step, named)

    def _compare_with_pristine(
        self, context: EvalContext, values: dict[str, float]
    ) -> dict[str, float]:
        if self.before is None:
            return {}
        ratio = values["perplexity"] / self.before[f"{self.prefix}collapse/perplexity"]
        broken = at_cap(values["perplexity"]) or ratio > self.max_perplexity_ratio
        if broken and self.first_broken is None and not context.single_edit:
            self.first_broken = context.step
        found = {"perplexity_ratio": ratio, "broken": float(broken)}
        if self.first_broken is not None:
            found["first_broken"] = float(self.first_broken)
        return found

    def _generate(self, context: EvalContext) -> list[dict[str, Any]]:
        """Sample this rank's continuations (top-k)."""
        texts = fixed_texts(self.texts, self.limit)[: self.generations]
        prompts = [" ".join(text.split()[:3]) for text in texts]
        reader = TextReader(
            context.model, context.encoder, self.batch_size, self.max_tokens, context.responder
        )

        def generate(share: Sequence[tuple[int, str]]) -> list[str]:
            numbers, beginnings = [number for number, _ in share], [text for _, text in share]
            return reader.continuations(
                beginnings, numbers, self.max_new_tokens, self.top_k, self.seed
            )

        found = context.map_sharded(list(enumerate(prompts)), generate)
        return [{"prompt": prompts[number], "generated": text} for number, text in found]


def read_perplexity(
    context: EvalContext,
    source: str | list[str] | None,
    limit: int,
    batch_size: int = 16,
    max_tokens: int = 128,
    baseline: bool = False,
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Measure perplexity on fixed texts.

    Args:
        context: The model.
        source: See :func:`~lightning_edit.evaluation.corpus.fixed_texts`.
        limit: Number of texts.
        batch_size: Texts per batch.
        max_tokens: Texts are truncated to this many tokens.
        baseline: Whether later perplexities are compared with this one, so that it must be one.

    Returns:
        Values by name, and this process's raw results, one row per text.

    Raises:
        NotFiniteError: If it is a baseline, and outputs of the model are not finite.
    """
    texts = fixed_texts(source, limit)
    reader = TextReader(context.model, context.encoder, batch_size, max_tokens, context.responder)
    scored = context.map_sharded(texts, reader.scores)
    found = [(number, (score.total, len(score.tokens))) for number, score in scored]
    metric = Perplexity(len(texts)).to(context.device)
    metric.update(
        torch.tensor([number for number, _ in found], dtype=torch.long),
        torch.tensor([nll for _, (nll, _) in found], dtype=torch.float64),
        torch.tensor([tokens for _, (_, tokens) in found], dtype=torch.long),
    )
    rows = [{"text": n, "nll": round(nll, 6), "tokens": tokens} for n, (nll, tokens) in found]
    values = to_floats(metric.compute())
    if baseline:
        # A sum over the processes, so that all of them raise.
        broken = SumMetric().to(context.device)
        broken.update(float(sum(max(score.nlls, default=0.0) >= NLL_CAP for _, score in scored)))
        _require_finite(int(broken.compute()), len(texts), values)
    return values, rows


def _require_finite(broken: int, texts: int, values: dict[str, float]) -> None:
    """Refuse a baseline of a model that is broken already: no ratio to it says anything."""
    if broken or at_cap(values.get("perplexity", 0.0)):
        where = f"on {broken} of {texts} texts" if broken else "on the texts of the perplexity"
        raise NotFiniteError(
            f"the model's own outputs are not finite {where}, before the edit, so nothing can be "
            "compared with its perplexity; load the model in a wider dtype (float32 or bfloat16), "
            "take back the edit that broke it, or take a checkpoint that is whole"
        )
