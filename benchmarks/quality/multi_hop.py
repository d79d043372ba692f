"""Multi-hop accuracy on MQuAKE of editors that put texts before a prompt: MeLLo, RAG, ICE.

Run:  python benchmarks/quality/multi_hop.py --lm MODEL --data MQuAKE-CF-3k-v2.json
          [--methods MeLLo RAG] [--cases 12] [--wordings 3] [--chat] [--show]

All edits of the cases are in force together. A case counts if the text of any of its wordings
begins with the new answer (section 4 of the paper), or, in the second figure, holds it. Intervals
are Wilson's, 95 %. For MeLLo also: dialogues that came to an answer, and dialogues in which a fact
of the case itself was retrieved.
"""

import argparse
from pathlib import Path

import transformers

from lightning_edit import load_language_model
from lightning_edit.datamodules.formats import read_requests
from lightning_edit.editors import ICE, RAG, MeLLo
from lightning_edit.editors.prompting.base import PromptingEditor
from lightning_edit.functional.bootstrap import wilson
from lightning_edit.functional.text import contains_answer, starts_with_answer
from lightning_edit.inference.responder import Question
from lightning_edit.models.prompt_encoder import PromptEncoder
from lightning_edit.models.prompt_format import PromptFormat
from lightning_edit.types import EditRequest, Probe

METHODS = {"MeLLo": lambda: MeLLo(turn_tokens=48), "RAG": lambda: RAG(k=2), "ICE": ICE}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lm", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["MeLLo", "RAG"])
    parser.add_argument("--cases", type=int, default=12)
    parser.add_argument("--wordings", type=int, default=3)
    parser.add_argument("--chat", action="store_true")
    parser.add_argument("--show", action="store_true", help="print what was said")
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    cases: dict[str, list[EditRequest]] = {}
    for request in read_requests(str(options.data)).requests:
        cases.setdefault(str(request.case), []).append(request)
    cases = dict(list(cases.items())[: options.cases])
    model, tokenizer = load_language_model(options.lm)
    prompts = PromptEncoder(tokenizer, PromptFormat(options.chat))
    for name in options.methods:
        editor = METHODS[name]()
        handle = editor.edit_model(model, prompts, [one for case in cases.values() for one in case])
        measure(name, editor, handle.responder(4), cases, options.wordings, options.show)
        handle.undo()


def measure(
    name: str,
    editor: PromptingEditor,
    responder: object,
    cases: dict[str, list[EditRequest]],
    wordings: int,
    show: bool,
) -> None:
    """Ask the questions of all cases and print what one method reaches."""
    asked: list[tuple[str, Probe]] = []
    for case, requests in cases.items():
        probes = [one for request in requests for one in request.probes if one.kind == "multi_hop"]
        asked += [(case, one) for one in probes[:wordings]]
    texts = responder.generate_until([Question(probe.prompt, 16) for _, probe in asked])  # type: ignore[attr-defined]
    right, held, own = set(), set(), 0
    for (case, probe), text in zip(asked, texts, strict=True):
        if starts_with_answer(text, probe.answers):
            right.add(case)
        if contains_answer(text, probe.answers):
            held.add(case)
        if show:
            print(f"--- {case}: {probe.prompt} [{probe.answers[0]}] -> {text!r}")
    for words, found in (("begins with", right), ("holds", held)):
        low, high = wilson(len(found) / len(cases), len(cases))
        print(
            f"{name}: the text {words} the new answer in {len(found)} of {len(cases)} cases "
            f"({100 * low:.0f} to {100 * high:.0f} %)"
        )
    if isinstance(editor, MeLLo):
        dialogues = editor.dialogues([probe.prompt for _, probe in asked], responder)  # type: ignore[arg-type]
        for case, probe in asked:
            dialogue = dialogues[probe.prompt]
            facts = () if dialogue is None else dialogue.facts
            own += any(one.subject in fact for one in cases[case] for fact in facts if one.subject)
            if show and dialogue is not None:
                print(f"--- {dialogue.transcript[dialogue.transcript.rindex('Question: ') :]}")
        answered = sum(one is not None and one.answered for one in dialogues.values())
        print(
            f"{name}: {answered} of {len(asked)} dialogues came to an answer, and in {own} a fact "
            "of the case was retrieved"
        )


if __name__ == "__main__":
    main()
