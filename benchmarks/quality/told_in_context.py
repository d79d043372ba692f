"""Whether a model believes what it is told: what LTI and in-context editing build on.

Run:  python benchmarks/quality/told_in_context.py [--lm atlas] [--edits 100]   (or atlas-t5)

Each fact of the embedded atlas is put in front of its own prompt, as LTI does. Prints how many new
answers begin with the likeliest token, and the mean probability of their first token.
"""

import argparse
import math

import transformers

from lightning_edit import load_language_model
from lightning_edit.datamodules import AtlasDataModule
from lightning_edit.inference.model_responder import ModelResponder
from lightning_edit.inference.responder import Statement


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lm", default="atlas")
    parser.add_argument("--edits", type=int, default=100)
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    model, tokenizer = load_language_model(options.lm)
    requests = AtlasDataModule(limit=options.edits).edit_requests()
    told = [
        Statement(f"Imagine that {one.prompt} {one.target}\n{one.prompt}", one.target)
        for one in requests
    ]
    scores = ModelResponder(model, tokenizer).loglikelihood(told)
    first = sum(one.best[0] == one.tokens[0] for one in scores)
    share = sum(math.exp(-one.nlls[0]) for one in scores) / len(scores)
    print(f"{first} of {len(requests)} answered as told; mean probability {share:.4f}")


if __name__ == "__main__":
    main()
