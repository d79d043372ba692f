"""Whether a model believes what it is told: what LTI and in-context editing build on.

Run:  python benchmarks/quality/told_in_context.py [--lm atlas] [--edits 100]

Each fact of the embedded atlas is put in front of its own prompt, as LTI does. Prints how many new
answers begin with the likeliest token, and the mean probability of their first token.
"""

import argparse

import torch
import transformers

from lightning_edit import load_language_model
from lightning_edit.datamodules import AtlasDataModule
from lightning_edit.models.prompt_encoder import PromptEncoder


@torch.no_grad()
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lm", default="atlas")
    parser.add_argument("--edits", type=int, default=100)
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    model, tokenizer = load_language_model(options.lm)
    first, probability = 0, 0.0
    requests = AtlasDataModule(limit=options.edits).edit_requests()
    for request in requests:
        told = f"Imagine that {request.prompt} {request.target}\n{request.prompt}"
        prompt, answer = next(PromptEncoder.of(tokenizer).pairs([(told, request.target)]))
        logits = model(input_ids=torch.tensor([prompt])).logits[0, -1]
        first += int(int(logits.argmax()) == answer[0])
        probability += float(logits.softmax(-1)[answer[0]])
    share = probability / len(requests)
    print(f"{first} of {len(requests)} answered as told; mean probability {share:.4f}")


if __name__ == "__main__":
    main()
