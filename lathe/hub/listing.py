"""Asks the Hub which files a repo holds at a revision, their sizes and hashes, and refuses names that escape."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lathe.errors import MissingError

SECONDS = 30.0  # to wait for an answer
COMMIT = re.compile(r"[0-9a-f]{40}")
# What no file may be called everywhere: a part of a path that Windows takes for a device, a drive or a stream.
UNFIT = re.compile(r'(?i)[\x00-\x1f<>:"|?*\\]|[. ]$|^(con|prn|aux|nul|com\d|lpt\d)(\.|$)|^$')


@dataclass(frozen=True)
class File:
    name: str
    """Relative to the repo, with slashes."""
    size: int | None
    digest: str
    """sha256:HEX of large files, git:HEX (as git hashes a blob) of small ones; '' where the Hub tells none."""

    def hasher(self) -> Any:
        """A hashlib object to be fed the file's bytes, whose hexdigest then is the one of `digest`."""
        if self.digest.startswith("git:"):
            return hashlib.sha1(f"blob {self.size}\0".encode(), usedforsecurity=False)
        return hashlib.sha256()


@dataclass(frozen=True)
class Listing:
    repo: str
    revision: str
    commit: str
    files: Mapping[str, File]


def read(repo: str, revision: str | None, token: str | None) -> Listing:
    """What `repo` holds at a branch, tag or commit (`main`, if None).

    Raises MissingError for a listing that cannot be trusted, and whatever huggingface_hub raises.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        info = HfApi(token=token).model_info(repo, revision=revision, files_metadata=True, timeout=SECONDS)
        entries = [(str(sibling.rfilename), sibling) for sibling in info.siblings or ()]
    except (HfHubHTTPError, HFValidationError):
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:  # a page of something else, read as a listing
        found = f"{constants.ENDPOINT} answered the question for the files of {repo} with something else."
        fix = "See what HF_ENDPOINT is, or whether the network wants you to log in first."
        raise MissingError(found, "It should be the Hugging Face Hub, or speak like it.", fix) from error
    if not isinstance(info.sha, str) or not COMMIT.fullmatch(info.sha):
        raise MissingError(f"The Hub does not say which commit of {repo} it lists.", "It must be 40 hex digits.")
    files = {}
    for name, sibling in entries:
        lfs = sibling.lfs
        if name.startswith("/") or "\\" in name or "\0" in name or ".." in name.split("/"):
            raise MissingError(
                f"The repo {repo} lists a file called {name!r}, which would lie outside the model's folder.",
                fix="Nothing was downloaded. Do not trust this repo.",
            )
        digest = _hex("sha256", getattr(lfs, "sha256", None), 64) if lfs else _hex("git", sibling.blob_id, 40)
        size = sibling.size if isinstance(sibling.size, int) and sibling.size >= 0 else None
        files[name] = File(name, size, digest if size is not None else "")
    return Listing(repo, revision or "main", info.sha, files)


def check(listing: Listing, names: list[str]) -> list[File]:
    """The files of these names. Raises MissingError for a name that not every system can hold."""
    for name in names:
        if any(UNFIT.search(part) for part in name.split("/")):
            found = f"The repo {listing.repo} lists a file called {name!r}, which is no name for a file everywhere."
            raise MissingError(found, fix="Nothing was downloaded.")
    return [listing.files[name] for name in names]


def _hex(kind: str, digits: object, count: int) -> str:
    return f"{kind}:{digits}" if isinstance(digits, str) and re.fullmatch(f"[0-9a-f]{{{count}}}", digits) else ""
