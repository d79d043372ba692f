"""Write the text that key statistics of the benchmark's second model are taken from.

Run:  python benchmarks/quality/second_model_text.py OUT.txt [--data ../shared/data]

The model was trained on statements of COUNTERFACT and zsRE, so its statistics come from statements
like these and not from prose: of records that the tables do not edit, with the true answers, in
random order (its seed is fixed).
"""

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: Records of each file that the tables edit.
EDITED = 100
#: Records of EasyEdit's training file that are enough.
TRAINING = 2_000


def statements(data: Path) -> Iterator[str]:
    """Yield every statement."""

    def records(name: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads((data / name).read_text())
        return found

    for record in records("counterfact/counterfact_500.json")[EDITED:]:
        rewrite = record["requested_rewrite"]
        answer = rewrite["target_true"]["str"]
        yield f"{rewrite['prompt'].format(rewrite['subject'])} {answer}"
        for prompt in record["neighborhood_prompts"]:
            yield f"{prompt} {answer}"
    for record in records("counterfact/counterfact-train.json")[:TRAINING]:
        yield f"{record['prompt']} {record['ground_truth']}"
        yield f"{record['rephrase_prompt']} {record['ground_truth']}"
        yield f"{record['locality_prompt']} {record['locality_ground_truth']}"
    for record in records("zsre/zsre_mend_eval_portability_gpt4.json")[EDITED:]:
        answer = record["answers"][0]
        yield f"{record['src']} {answer}"
        yield f"{record['rephrase']} {answer}"
        yield f"{record['loc']} {record['loc_ans']}"


def main() -> None:
    """Write one statement a line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    options = parser.parse_args()
    lines = list(statements(options.data))
    random.Random(0).shuffle(lines)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text("".join(line.replace("\n", " ") + "\n" for line in lines))
    print(f"{len(lines):,} statements: {options.out}")


if __name__ == "__main__":
    main()
