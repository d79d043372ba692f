"""Thousands of edits in models of billions of parameters, by stage, with peak memory.

Run:  python benchmarks/speed/editing_scale.py --out benchmarks/results/editing_scale.json  (a GPU)
      python benchmarks/speed/editing_scale.py --tiny        a minute on a CPU, to see that it works

Models have the published shapes and random weights in bfloat16: speed depends on shapes alone, so
nothing is downloaded. Lengths of prompts follow COUNTERFACT (``gpt2_shape.requests``). With random
weights no search ends early: every request takes all its steps, so seconds are upper bounds.
Every part runs in a process of its own and is kept as soon as it is done.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gpt2_shape
import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoModelForCausalLM

import lightning_edit.editors as editors
from lightning_edit.benchmark.machine import machine
from lightning_edit.edits.encoding import encode_batch

#: Published shapes; the sizes of ``--tiny`` keep their proportions.
SHAPES: dict[str, dict[str, Any]] = {
    "gpt-j-6b": {
        "model_type": "gptj",
        "vocab_size": 50400,
        "n_embd": 4096,
        "n_layer": 28,
        "n_head": 16,
    },
    "llama-3-8b": {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
}
TINY: dict[str, dict[str, Any]] = {
    "gpt-j-6b": {"n_embd": 64, "n_layer": 9, "n_head": 4, "rotary_dim": 8},
    "llama-3-8b": {
        "hidden_size": 64,
        "intermediate_size": 224,
        "num_hidden_layers": 9,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}


@dataclass(frozen=True)
class Case:
    """One editor on one shape."""

    editor: str
    model: str
    edits: int
    arguments: dict[str, Any] = field(default_factory=dict)


#: MEMIT's blocks and steps are those of its authors for GPT-J and of EasyEdit for Llama.
_MEMIT = {"steps": 25, "moment_weight": 15_000.0, "clamp": 0.75}
_GPTJ = _MEMIT | {"layers": [3, 4, 5, 6, 7, 8]}
_LLAMA = _MEMIT | {"layers": [4, 5, 6, 7, 8], "lr": 0.1}
CASES = {
    "memit-gpt-j-1000": Case("MEMIT", "gpt-j-6b", 1_000, _GPTJ),
    "memit-llama-1000": Case("MEMIT", "llama-3-8b", 1_000, _LLAMA),
    "ultraedit-llama-20000": Case("UltraEdit", "llama-3-8b", 20_000),
    "memit-gpt-j-10000": Case("MEMIT", "gpt-j-6b", 10_000, _GPTJ),
    "memit-llama-10000": Case("MEMIT", "llama-3-8b", 10_000, _LLAMA),
}
#: UltraEdit writes 100 at a time in its authors' long runs.
_SEQUENCE = 100


def build(name: str, tiny: bool, device: torch.device) -> Any:
    """Return a model of a published shape with random weights."""
    settings = SHAPES[name] | (TINY[name] if tiny else {})
    config = AutoConfig.for_model(
        settings.pop("model_type"), bos_token_id=0, eos_token_id=0, **settings
    )
    torch.manual_seed(0)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.eval().requires_grad_(False)


def measure(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """Edit once and return seconds by stage and peak memory."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    count = 20 if options.tiny else min(case.edits, options.edits or case.edits)
    model = build(case.model, options.tiny, device)
    _, tokenizer = gpt2_shape.build(small=True)
    extra: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        if case.editor == "MEMIT":
            layers = case.arguments["layers"]
            file = gpt2_shape.statistics(model, layers, Path(folder) / "moments.safetensors")
            extra = {"statistics": file, "context_templates": gpt2_shape.templates(5, 10)}
        arguments = case.arguments | extra
        begin = time.monotonic()
        editor: Any = getattr(editors, case.editor)(**arguments).bind(model, tokenizer)
        bound = time.monotonic() - begin
    requests = gpt2_shape.requests(count)
    size = count if case.editor == "MEMIT" else _SEQUENCE
    editor.take_stages()
    begin = time.monotonic()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for start in range(0, count, size):
        delta = editor.edit(encode_batch(tokenizer, requests[start : start + size]))
        editor.remember(delta)
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = editor.take_stages() | {"edit": time.monotonic() - begin}
    seconds = {stage: round(value / count, 6) for stage, value in seconds.items()}
    return {
        "editor": case.editor,
        "model": case.model,
        "tiny": options.tiny,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "edits": count,
        "batch": size,
        "arguments": case.arguments,
        "bind_seconds": round(bound, 2),
        "seconds_per_edit": seconds,
        "minutes": round(seconds["edit"] * count / 60, 2),
        "peak_gib": _peak(device),
    }


def _peak(device: torch.device) -> float | None:
    """Return the most memory that was taken on the GPU; ``None`` on a CPU."""
    return round(torch.cuda.max_memory_allocated() / 2**30, 2) if device.type == "cuda" else None


def shown(runs: list[dict[str, Any]]) -> None:
    """Print a line a part."""
    table = Table("part", "edits", "s/edit", "search", "keys", "solve", "minutes", "peak GiB")
    for run in runs:
        if "error" in run:
            table.add_row(run["part"], run["error"])
            continue
        stages = run["seconds_per_edit"]
        cells = [f"{stages[s]:.5f}" if s in stages else "–" for s in ("search", "keys", "solve")]
        peak = "–" if run["peak_gib"] is None else str(run["peak_gib"])
        table.add_row(
            run["part"],
            str(run["edits"]),
            f"{stages['edit']:.5f}",
            *cells,
            str(run["minutes"]),
            peak,
        )
    Console(width=110).print(table)


def main() -> None:
    """Measure every part asked for, and keep it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--edits", type=int, help="fewer edits than the published numbers")
    parser.add_argument("--tiny", action="store_true", help="narrow models and 20 edits")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--part", choices=list(CASES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not torch.cuda.is_available() and not options.tiny:
        parser.error("models of this size need a GPU, and torch finds none; try --tiny")
    if options.part is not None:
        options.out.write_text(json.dumps(measure(CASES[options.part], options)))
        return
    record: dict[str, Any] = {"machine": machine(), "runs": []}
    passed = [*(["--tiny"] if options.tiny else [])]
    passed += [] if options.edits is None else ["--edits", str(options.edits)]
    for part in options.parts:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "part.json"
            command = [sys.executable, __file__, "--part", part, "--out", str(file), *passed]
            ended = subprocess.run(command, check=False)
            failed = {"error": f"ended with status {ended.returncode}"}
            found = json.loads(file.read_text()) if ended.returncode == 0 else failed
        record["runs"].append({"part": part} | found)
        if options.out is not None:  # kept part by part: a whole run takes long
            options.out.write_text(json.dumps(record, indent=2) + "\n")
    shown(record["runs"])


if __name__ == "__main__":
    main()
