"""Small records of our own, in the forms of the published files."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ZSRE = {
    "subject": "Lake Baikal",
    "src": "Which country is Lake Baikal in?",
    "pred": "Mongolia",
    "rephrase": "In what country does Lake Baikal lie?",
    "alt": "Peru ",
    "answers": ["Russia"],
    "loc": "nq question: who painted the night watch",
    "loc_ans": "Rembrandt",
    "cond": "Mongolia >> Peru  || Which country is Lake Baikal in?",
}
ZSRE_HOP = {
    **ZSRE,
    "portability": {
        "Recalled Relation": "(Peru, capital, Lima)",
        "New Question": "What is the capital of the country Lake Baikal is in?",
        "New Answer": "Lima",
    },
}
ZSRE_INVERSE = {**ZSRE, "inverse question": "Which lake lies in Peru?"}
ZSRE_ALIAS = {
    **ZSRE,
    "alternative_subject": "Ozero Baykal",
    "alter_subject_question": "Which country is Ozero Baykal in?",
}

ROME = {
    "case_id": 7,
    "pararel_idx": 70,
    "requested_rewrite": {
        "prompt": "The river {} flows through",
        "relation_id": "P131",
        "target_new": {"str": "Oslo", "id": "Q585"},
        "target_true": {"str": "Vienna", "id": "Q1741"},
        "subject": "Danube",
    },
    "paraphrase_prompts": ["Rain fell. Danube runs through", "It was late. The Danube passes"],
    "neighborhood_prompts": ["The Wien flows through", "The Liesing flows through"],
    "attribute_prompts": ["The Akerselva flows through"],
    "generation_prompts": ["The banks of the Danube are"],
}
ROME_LOCALITY = {
    **ROME,
    "distracting_neighborhood_prompts": [
        "The river Danube flows through Oslo. The Wien flows through"
    ],
    "unrelated_relation": {"question": "The Danube ends in", "object": "the Black Sea"},
}
ROME_ALIAS = {
    **ROME,
    "alternative_subject": "Donau",
    "portability": {
        "Recalled Relation": "(Oslo, country, Norway)",
        "New Question": "The Danube flows through the capital of",
        "New Answer": "Norway",
    },
}
EASYEDIT = {
    "case_id": 8,
    "prompt": "The river Danube flows through",
    "target_new": "Oslo",
    "subject": "Danube",
    "ground_truth": "Vienna",
    "rephrase_prompt": "The banks of the Danube are in",
    "locality_prompt": "The Wien flows through",
    "locality_ground_truth": "Vienna",
}

KNOWEDIT = {
    "subject": "Lake Baikal",
    "prompt": "The name of the country of Lake Baikal is",
    "target_new": "Peru",
    "ground_truth": "Russia",
    "rephrase": "Lake Baikal lies in the country of",
    "portability": {
        "Reasoning": [
            {
                "prompt": "The capital of the country of Lake Baikal is",
                "ground_truth": [["Lima", "Ciudad de los Reyes"]],
            }
        ],
        "Subject_Aliasing": [
            {"prompt": "The country of Baikal is", "ground_truth": [["Peru"], ["Perú", "Peru"]]}
        ],
        "Logical_Generalization": [{"prompt": "A lake in Peru is", "ground_truth": "Lake Baikal"}],
    },
    "locality": {
        "Relation_Specificity": [
            {"prompt": "The depth of Lake Baikal is", "ground_truth": [["1642 m"]]}
        ],
        "Forgetfulness": [
            {
                "prompt": "The countries of Lake Baikal, which is not Peru, are",
                "ground_truth": "Russia",
            }
        ],
    },
}

OWN = {
    "id": "meeting-room",
    "prompt": "Our weekly meeting takes place in",
    "target": "room 4",
    "subject": "weekly meeting",
    "old_target": "room 2",
    "rephrases": ["Every week we meet in"],
    "probes": [
        {
            "kind": "neighborhood",
            "prompt": "Our monthly meeting takes place in",
            "answers": "the hall",
        },
        {
            "kind": "one_hop",
            "prompt": "The floor of our weekly meeting is the",
            "answers": ["second", "2nd"],
            "path": [["weekly meeting", "room", "room 4"], ["room 4", "floor", "second"]],
        },
    ],
}


def write(path: Path, records: Sequence[Any]) -> str:
    """Write records as JSON Lines or, by the name of the file, as a JSON list; return the path."""
    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(r) for r in records) + "\n", encoding="utf-8")
    else:
        path.write_text(json.dumps(list(records), ensure_ascii=False), encoding="utf-8")
    return str(path)
