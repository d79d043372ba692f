"""Every published record at hand parses, with the counts of the files' own description."""

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.conftest import shared_path

FILES: dict[str, tuple[str, int, int, dict[str, int]]] = {
    "zsre/zsre_mend_eval_portability_gpt4.json": (
        "zsRE",
        1037,
        1037,
        {"rephrase": 1037, "natural_question": 1037, "one_hop": 1037},
    ),
    # Two records of MEND's training file have no new answer.
    "zsre/zsre_mend_train-1k.json": ("zsRE", 1000, 998, {"rephrase": 998, "natural_question": 998}),
    "counterfact/counterfact-edit.json": (
        "COUNTERFACT",
        10000,
        10000,
        {"rephrase": 10000, "neighborhood": 10000},
    ),
    "counterfact/counterfact-train.json": (
        "COUNTERFACT",
        10000,
        10000,
        {"rephrase": 10000, "neighborhood": 10000},
    ),
    "counterfact/counterfact-val.json": (
        "COUNTERFACT",
        1919,
        1919,
        {"rephrase": 1919, "neighborhood": 1919},
    ),
    "counterfact/counterfact_500.json": (
        "COUNTERFACT",
        500,
        500,
        {"rephrase": 1000, "neighborhood": 5000},
    ),
    "knowedit/ZsRE-test-all.json": (
        "KnowEdit",
        1301,
        1301,
        {
            "rephrase": 1301,
            "relation_specificity": 2602,
            "subject_alias": 263,
            "reversed_relation": 267,
            "one_hop": 771,
        },
    ),
    "knowedit/wiki_counterfact_test_cf.json": (
        "KnowEdit",
        839,
        839,
        {
            "rephrase": 839,
            "relation_specificity": 5486,
            "forgetfulness": 468,
            "subject_alias": 2358,
            "reversed_relation": 405,
            "one_hop": 2082,
        },
    ),
    "knowedit/wiki_counterfact_train_cf.json": (
        "KnowEdit",
        1427,
        1427,
        {
            "relation_specificity": 1253,
            "forgetfulness": 781,
            "subject_alias": 1409,
            "reversed_relation": 304,
            "one_hop": 503,
        },
    ),
}


@pytest.fixture(scope="module")
def reports() -> dict[str, Any]:
    # One process for all, without the type checks of the tests: there are 28,000 records.
    folder = shared_path("data")
    code = "import sys; from lightning_edit.cli.data import main; sys.exit(main(sys.argv[1:]))"
    command = [
        sys.executable,
        "-c",
        code,
        "check",
        "--json",
        *(str(folder / name) for name in FILES),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(zip(FILES, json.loads(done.stdout)["files"], strict=True))


@pytest.mark.parametrize("name", FILES)
def test_published_file(name: str, reports: dict[str, Any]) -> None:
    form, records, edits, probes = FILES[name]
    report = reports[name]
    assert report["errors"] == []
    assert (report["form"], report["records"], report["requests"]) == (form, records, edits)
    assert report["probes"] == {"rewrite": edits, **probes}
    assert not [found for found in report["findings"] if found["what"].startswith("subject")]
