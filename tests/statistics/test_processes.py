"""Two processes that share the passes give the moments of one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from lightning_edit.cli.stats import main
from lightning_edit.functional.statistics import SecondMoment
from lightning_edit.statistics.moments import Moments
from tests.forks import Forks
from tests.models.tiny import CORPUS, TINY, build_tokenizer

ROOT = Path(__file__).parents[2]


def add_up(folder: str, split: int) -> None:
    """Add this process's keys to the sum of both."""
    rank = int(os.environ["LOCAL_RANK"])
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    keys = load_file(f"{folder}/keys.safetensors")["keys"]
    mine = keys[:split] if rank == 0 else keys[split:]
    metric = SecondMoment(keys.shape[1])
    for part in mine.split(50) if len(mine) else [mine]:
        metric.update(part)
    save_file({"found": metric.compute()}, f"{folder}/{rank}.safetensors")
    dist.destroy_process_group()


def keys(whole_numbers: bool) -> torch.Tensor:
    made = torch.randn(331, 24, generator=torch.Generator().manual_seed(0))
    return made.mul(8).round() if whole_numbers else made


@pytest.mark.slow
@pytest.mark.parametrize("split", [97, 0], ids=["uneven", "empty"])
@pytest.mark.parametrize("whole_numbers", [True, False])
def test_sum_states_on_two_processes(
    tmp_path: Path, forks: Forks, split: int, whole_numbers: bool
) -> None:
    every = keys(whole_numbers)
    save_file({"keys": every}, tmp_path / "keys.safetensors")
    forks.run(add_up, tmp_path, split, ranks=2)
    one = SecondMoment(24)
    one.update(every)
    expected = one.compute()
    for rank in range(2):
        found = load_file(tmp_path / f"{rank}.safetensors")["found"]
        if whole_numbers:  # sums without rounding do not depend on their order
            assert torch.equal(found, expected)
        else:
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)


#: The program, which then fails if threads of the process group are left: at Python's shutdown they
#: can abort the process.
PROGRAM = """
import glob, pathlib, sys
from lightning_edit.cli.main import main
code = main(sys.argv[1:])
names = [pathlib.Path(name).read_text() for name in glob.glob("/proc/self/task/*/comm")]
sys.exit(code or [name for name in names if "gloo" in name] or 0)
"""


@pytest.mark.slow
def test_the_verb_on_two_processes(tmp_path: Path) -> None:
    TINY["gpt2"]().save_pretrained(tmp_path / "lm")
    build_tokenizer().save_pretrained(tmp_path / "lm")
    # Seven passes, so that one process has one more than the other.
    (tmp_path / "text.txt").write_text("\n".join(f"{CORPUS[n % 5]} {n}" for n in range(60)))
    arguments = ["stats", "--lm", str(tmp_path / "lm"), "--text", str(tmp_path / "text.txt")]
    arguments += ["--max_tokens", "1000", "--batch_tokens", "160"]
    (tmp_path / "program.py").write_text(PROGRAM)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    out = ["--out", str(tmp_path / "two.safetensors")]
    done = subprocess.run(
        [*torchrun, "--standalone", str(tmp_path / "program.py"), *arguments, *out],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("1,000 tokens") == 1
    assert main([*arguments[1:], "--out", str(tmp_path / "one.safetensors")]) == 0
    two, one = (Moments.load(tmp_path / f"{name}.safetensors") for name in ("two", "one"))
    assert (two.tokens, two.corpus, two.model) == (one.tokens, one.corpus, one.model)
    for name, matrix in one.matrices.items():
        # float64 sums in another order, rounded to float32.
        torch.testing.assert_close(two.matrices[name], matrix, rtol=2e-7, atol=1e-9)
