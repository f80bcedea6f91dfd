"""What goes wrong between here and the Hub, in words: found, expected, what to type next."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lathe.errors import MissingError, UsageError, did_you_mean
from lathe.hub import known


def check_token(token: str | None) -> str | None:
    """The token that is going to be used: that given, else that of HF_TOKEN or of `hf auth login`.

    Raises UsageError, without showing it, for one that cannot be a token: an HTTP library would print it.
    """
    from huggingface_hub import get_token

    token = get_token() if token is None else token
    if token is not None and not re.fullmatch("[!-~]+", token):
        found = "The access token is empty, or has spaces or characters that no token has."
        fix = "It comes from --token, from HF_TOKEN, or from `hf auth login`."
        raise UsageError(found, "A token of the Hub looks like hf_ and some thirty letters and digits.", fix)
    return token


@contextmanager
def in_words(repo: str, revision: str | None, checkpoints: Path, token: str | None) -> Iterator[None]:
    """Turn what huggingface_hub, its HTTP library or the disk raises in the body into a MissingError."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        HTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except GatedRepoError:
        page = f"{constants.ENDPOINT}/{repo}"
        fix = f"Ask for access at {page}, then log in with `hf auth login`, set HF_TOKEN, or give --token."
        raise MissingError(f"The repo {repo} is gated: its owner decides who may download it.", fix=fix) from None
    except RevisionNotFoundError:
        found = f'The repo {repo} has no revision "{revision}".'
        raise MissingError(
            found, "A revision is a branch, a tag or a commit.", _revisions(repo, revision, token)
        ) from None
    except RepositoryNotFoundError:
        raise _no_repo(repo, checkpoints) from None
    except HFValidationError:
        raise MissingError(f'"{repo}" is not the id of a repo.', "It looks like Qwen/Qwen3-0.6B.") from None
    except OfflineModeIsEnabled:
        found = f"{repo} is not on this machine, and HF_HUB_OFFLINE forbids to download it."
        raise MissingError(found, fix="Unset HF_HUB_OFFLINE, or name a folder.") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        unknown = "Invalid credentials" in error.response.headers.get("X-Error-Message", "")
        if status == 404 or (status == 401 and not unknown):
            raise _no_repo(repo, checkpoints) from None
        raise _answered(status, repo, reason(error, token)) from None
    except HTTPError as error:
        found = f"Downloading {repo} from {constants.ENDPOINT} failed: {reason(error, token)}."
        raise MissingError(found, fix="Run the same again: what has arrived is kept.") from None
    except OSError as error:
        if error.errno == errno.ENOSPC:
            found = f"The disk that holds {checkpoints} is full."
            raise MissingError(found, fix="Free some, and run the same again: what has arrived is kept.") from None
        found = f"{repo} cannot be written below {checkpoints}: {reason(error, token)}."
        raise MissingError(found, fix="Give another folder with --checkpoints.") from error


def _no_repo(repo: str, checkpoints: Path) -> MissingError:
    # The Hub gives the same answer for a private repo as for none.
    found = f'There is no folder or file "{repo}", here or below {checkpoints}, and no such repo at the Hub.'
    near = known.meant(repo, known.below(checkpoints))
    return MissingError(found, fix=near or "A private repo needs your token, in HF_TOKEN or --token.")


def _answered(status: int, repo: str, reason: str) -> MissingError:
    if status == 401:
        fix = "Make one at https://huggingface.co/settings/tokens, or unset HF_TOKEN to download what is open to all."
        return MissingError(f"The Hub does not know the token that it was shown for {repo}.", fix=fix)
    if status == 403:
        fix = "Give it the right to read this repo, or ask the repo's owner."
        return MissingError(f"The Hub does not let this token download {repo}: {reason}.", fix=fix)
    if status == 429:
        fix = "Wait some minutes and run the same again: what has arrived is kept. Who is logged in may ask more often."
        return MissingError(f"The Hub was asked too often to go on with {repo} now.", fix=fix)
    return MissingError(
        f"Downloading {repo} failed: the Hub answered {reason}.",
        fix="Run the same again, later if need be: what has arrived is kept.",
    )


def reason(error: BaseException, token: str | None) -> str:
    """An error's first line, without the token and without what only the Hub's people can use."""
    line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    line = line.partition(" (Request ID")[0].strip().rstrip(".")
    return line.replace(token, "***") if token else line


def _revisions(repo: str, revision: str | None, token: str | None) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    try:
        refs = HfApi(token=token).list_repo_refs(repo)
    except HTTPError:  # the hint is not worth another error
        return ""
    names = [ref.name for ref in (*refs.branches, *refs.tags)]
    listed = f"It has {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}."
    return f"{listed} {did_you_mean(revision or '', names)}".strip()
