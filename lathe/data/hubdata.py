"""The id of a data set at the Hugging Face Hub, or an address, becomes files, each fetched when it is first read.

    org/name                 the split "train"
    org/name:test            another split
    org/name:main:test       of one configuration
    org/name/data/*.jsonl    files by their names
    https://.../rows.json    one file

Whose files are which split is what the repo's card says, else what their paths say (train, test, validation ...). A
repo with a program in place of files is read from the parquet files that the Hub makes of it.
"""

from __future__ import annotations

import fnmatch
import hashlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lathe.data.files import File, Piece, Table, is_read
from lathe.data.unpacking import cache, suffix
from lathe.errors import DataError, MissingError, did_you_mean
from lathe.hub.refusals import check_token, reason

REPO = re.compile(r"[\w.-]+/[\w.-]+(/[^:]+|(:[\w.-]+){1,2})?")
MADE = "refs/convert/parquet"  # the Hub's own parquet files of a repo: CONFIGURATION/SPLIT/0000.parquet
DATA = (".parquet", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt")  # of several kinds, the first is the data
ABOUT = (
    "dataset_infos.json",
    "dataset_info.json",
    "dataset_dict.json",
    "state.json",
    "requirements.txt",
    "LICENSE.txt",
)
SPLITS = {"train": r"train(ing)?", "test": r"test(ing)?|eval(uation)?", "validation": r"val(id(ation)?)?|dev"}


@dataclass(frozen=True)
class Remote:
    """A file of a repo at one commit."""

    repo: str
    commit: str
    path: str

    @property
    def file(self) -> File:
        """The file, on this machine. Raises MissingError where it cannot be had."""
        from huggingface_hub import hf_hub_download

        with in_words(self.repo):
            place = hf_hub_download(self.repo, self.path, repo_type="dataset", revision=self.commit)
        return File(Path(place), name=f"{self.repo}/{self.path}")

    def pieces(self) -> Iterator[Piece]:
        return self.file.pieces()

    def table(self) -> Table:
        return self.file.table()

    def identity(self) -> str:
        return f"{self.repo} {self.commit} {self.path}"


@dataclass(frozen=True)
class Address:
    """A file at an http(s) address, kept in the cache once it was fetched."""

    url: str

    @property
    def file(self) -> File:
        """The file, on this machine. Raises MissingError where it cannot be had."""
        name = Path(urlsplit(self.url).path).name
        place = cache() / "fetched" / hashlib.blake2b(self.url.encode(), digest_size=12).hexdigest() / name
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            self._fetch(place)
        return File(place, name=self.url)

    def _fetch(self, place: Path) -> None:
        from http.client import HTTPException
        from urllib.request import urlopen

        with tempfile.TemporaryDirectory(dir=place.parent) as beside:
            part = Path(beside) / place.name
            try:
                with urlopen(self.url, timeout=30) as answer, part.open("wb") as target:
                    shutil.copyfileobj(answer, target, 1 << 20)
                    told = answer.headers.get("Content-Length")
            except (OSError, HTTPException, ValueError) as error:
                raise MissingError(f"Cannot fetch {self.url}: {error}.") from None
            if told is not None and part.stat().st_size != int(told):
                raise MissingError(f"{self.url} was cut off while it was fetched.", fix="Run the same again.")
            part.replace(place)

    def pieces(self) -> Iterator[Piece]:
        return self.file.pieces()

    def table(self) -> Table:
        return self.file.table()

    def identity(self) -> str:
        return self.file.identity()


def parts(name: str) -> Sequence[Remote | Address]:
    """The files of a data set, named as above; nothing of them is fetched.

    Raises:
        MissingError: no such repo, or it cannot be reached.
        DataError: it has no such files, split or configuration.
    """
    if name.startswith(("http://", "https://")):
        if not is_read(Path(urlsplit(name).path)):
            raise DataError(f"{name} is of a kind that is not read.")
        return [Address(name)]
    repo = "/".join(name.partition(":")[0].split("/")[:2])
    pattern, words = name[len(repo) + 1 :] if name[len(repo) :].startswith("/") else "", name.split(":")[1:]
    listing = listed(repo, None)
    if pattern:
        chosen = fnmatch.filter(listing.files, pattern)
        if not chosen:
            raise DataError(f"{repo} has no file {pattern}.", fix=did_you_mean(pattern, listing.files))
        return [Remote(repo, listing.commit, path) for path in chosen]
    tables = listing.splits()
    if not tables:
        listing = listed(repo, MADE)
        tables = listing.made()
    config, split = _asked(repo, words, tables)
    return [Remote(repo, listing.commit, path) for path in tables[config][split]]


def _asked(repo: str, words: list[str], tables: Mapping[str, Mapping[str, list[str]]]) -> tuple[str, str]:
    """The configuration and the split that are meant."""
    config = next((word for word in words if word in tables), "default" if "default" in tables else "")
    if not config and len(tables) > 1:
        named = ", ".join(f"{repo}:{name}" for name in tables)
        raise DataError(f"{repo} has several configurations.", fix=f"Name one: {named}.")
    config = config or next(iter(tables), "")
    rest = [word for word in words if word != config] or ["train" if "train" in tables.get(config, {}) else ""]
    found = tables.get(config, {})
    split = rest[0] or (next(iter(found)) if len(found) == 1 else "")
    if len(rest) > 1 or split not in found:
        has = ", ".join(f"{repo}:{name}" for name in found) or "no files that are read"
        raise DataError(f"{repo} has no split {' '.join(rest) or 'train'}.", f"It has {has}.")
    return config, split


@dataclass(frozen=True)
class Listing:
    """The files of a repo at a commit that are read, and what its card says about them."""

    files: Sequence[str]
    commit: str
    configs: Sequence[Mapping[str, Any]]

    def splits(self) -> dict[str, dict[str, list[str]]]:
        """Configuration -> split -> files, as the card or the paths have it."""
        found = {str(config.get("config_name", "default")): self._told(config) for config in self.configs}
        if found := {name: splits for name, splits in found.items() if splits}:
            default = [str(config.get("config_name")) for config in self.configs if config.get("default")]
            return found | ({"default": found[default[0]]} if default and default[0] in found else {})
        splits: dict[str, list[str]] = {}
        kind = next((kind for kind in DATA if any(suffix(Path(path)) == kind for path in self.files)), "")
        for path in self.files:
            if suffix(Path(path)) == kind:
                splits.setdefault(_split(path), []).append(path)
        return {"default": splits} if splits else {}

    def _told(self, config: Mapping[str, Any]) -> dict[str, list[str]]:
        told = config.get("data_files") or []
        entries = told if isinstance(told, list) else [told]
        splits: dict[str, list[str]] = {}
        for entry in entries:
            entry = entry if isinstance(entry, dict) else {"split": "train", "path": entry}
            patterns = entry.get("path", [])
            for pattern in [patterns] if isinstance(patterns, str) else patterns:
                chosen = fnmatch.filter(self.files, str(pattern).replace("**/", "*"))
                splits.setdefault(str(entry.get("split", "train")), []).extend(chosen)
        return {split: files for split, files in splits.items() if files}

    def made(self) -> dict[str, dict[str, list[str]]]:
        """The same for the parquet files that the Hub makes."""
        found: dict[str, dict[str, list[str]]] = {}
        for path in self.files:
            if path.count("/") == 2:
                config, split, _ = path.split("/")
                found.setdefault(config, {}).setdefault(split.removeprefix("partial-"), []).append(path)
        return found


def _split(path: str) -> str:
    """The split that a path speaks of; train, if of none."""
    for word in reversed(re.split(r"[^A-Za-z]+", path)):
        for split, pattern in SPLITS.items():
            if re.fullmatch(pattern, word, re.IGNORECASE):
                return split
    return "train"


def listed(repo: str, revision: str | None) -> Listing:
    """What a repo holds. Raises MissingError."""
    from huggingface_hub import HfApi

    with in_words(repo):
        info = HfApi().dataset_info(repo, revision=revision, timeout=30)
    files = sorted(sibling.rfilename for sibling in info.siblings or ())
    readable = [path for path in files if suffix(Path(path)) in DATA and Path(path).name not in ABOUT]
    card = info.card_data.to_dict() if info.card_data else {}
    return Listing(readable, str(info.sha), card.get("configs") or [])


@contextmanager
def in_words(repo: str) -> Iterator[None]:
    """Turn what huggingface_hub or its HTTP library raises in the body into a MissingError. Raises UsageError, before
    it, for a token that cannot be one."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        HTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    token = check_token(None)
    try:
        yield
    except GatedRepoError:
        fix = "Ask for access on its page, then log in with `hf auth login`, or set HF_TOKEN."
        raise MissingError(f"The data set {repo} is gated: its owner decides who may read it.", fix=fix) from None
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError):
        raise nowhere(repo) from None
    except (OfflineModeIsEnabled, HTTPError, OSError) as error:
        if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 404):
            raise nowhere(repo) from None
        found = f"Reading {repo} from the Hub failed: {reason(error, token)}."
        raise MissingError(found, fix="Run the same again.") from None


def nowhere(repo: str) -> MissingError:
    # The Hub gives the same answer for a private repo as for none.
    found = f'There is no data "{repo}": no file or folder here, and no such data set at the Hub.'
    return MissingError(found, fix="A private data set needs your token: log in with `hf auth login`, or set HF_TOKEN.")
