"""Download of data files: a local path, a URL, or a data set on the Hugging Face hub."""

import re
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn
from urllib.parse import urlparse

from lightning_edit.datamodules.formats.files import DATA_SUFFIXES
from lightning_edit.exceptions import DataError

_URL = re.compile(r"https?://")
_NAME = re.compile(
    r"(?P<repo>[\w.-]+/[\w.-]+?)(?:@(?P<revision>[\w.-]+))?(?::(?P<file>[\w./ -]+))?"
)


def local_file(source: str) -> Path:
    """Return the local path of a data file; download it if ``source`` is a URL or a hub name.

    An existing file takes precedence. ``owner/name``, ``owner/name:folder/file.json`` and
    ``owner/name@revision:file.json`` name a data set on the hub. Only data files are downloaded; no
    code of a data set is ever run.

    Raises:
        DataError: If it cannot be downloaded, with the reason and a remedy.
    """
    path = Path(source).expanduser()
    if path.exists():
        return path
    if _URL.match(source):
        return _download(source)
    name = _NAME.fullmatch(source)
    # `data/facts.json` looks like a hub name, but means a missing file.
    if name is None or (name["file"] is None and source.endswith((*DATA_SUFFIXES, ".txt"))):
        return path
    return _from_hub(name["repo"], name["revision"], name["file"])


def suffix_of(source: str) -> str | None:
    """Return the extension of a URL's file, which its downloaded copy lacks.

    Args:
        source: A path, a URL or a hub name.

    Returns:
        The extension, such as ``.csv``; ``None`` for anything but a URL.
    """
    return PurePosixPath(urlparse(source).path).suffix if _URL.match(source) else None


def _download(url: str) -> Path:
    from datasets import DownloadManager  # slow; few sources are URLs

    try:
        return Path(DownloadManager().download(url))
    except (OSError, ValueError) as error:
        _raise_unavailable(url, error)


def _from_hub(repo: str, revision: str | None, file: str | None) -> Path:
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    # Its bases are OSError and the root error of the HTTP client, which differs by hub version.
    unavailable: tuple[type[Any], ...] = HfHubHTTPError.__bases__
    try:
        if file is None:
            names = HfApi().list_repo_files(repo, revision=revision, repo_type="dataset")
            file = _single_data_file(repo, [name for name in names if name.endswith(DATA_SUFFIXES)])
        return Path(hf_hub_download(repo, file, revision=revision, repo_type="dataset"))
    except RepositoryNotFoundError as error:
        raise DataError(
            f"{repo}: neither a file nor a public data set has that name; check the spelling"
        ) from error
    except unavailable as error:
        _raise_unavailable(repo, error)


def _single_data_file(repo: str, names: list[str]) -> str:
    if len(names) == 1:
        return names[0]
    if not names:
        raise DataError(
            f"{repo}: the data set has no JSON, JSON Lines, CSV, TSV or Parquet file; export it as "
            "JSON Lines, and give that file"
        )
    listed = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
    raise DataError(
        f"{repo}: the data set has several files; choose one as {repo}:FILE. They are: {listed}"
    )


def _raise_unavailable(source: str, error: Exception) -> NoReturn:
    reason = str(error).strip().splitlines()
    why = f"{type(error).__name__}: {reason[0]}" if reason else type(error).__name__
    raise DataError(
        f"{source}: cannot be loaded ({why}); "
        "check the name and the connection, or download the file elsewhere and give its path"
    ) from error
