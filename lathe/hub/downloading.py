"""A repo id becomes a folder below `checkpoints`: complete under its name, or waiting beside it for the next try."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from lathe.errors import MissingError
from lathe.hub import choosing, fetching, listing, note
from lathe.hub.bar import amount, bar, say
from lathe.hub.listing import File, Listing
from lathe.hub.note import Note
from lathe.hub.refusals import check_token, in_words


def bring(
    repo: str,
    checkpoints: Path,
    *,
    revision: str | None = None,
    weights: bool = True,
    file: str | None = None,
    token: str | None = None,
) -> Path:
    """Download what is not there yet of a repo into `checkpoints/repo`, saying so on stderr.

    Of several processes one downloads, and the others wait and find it there. What is cut off goes on at the next
    call. What the Hugging Face cache holds is linked, not downloaded.

    Args:
        revision: branch, tag or commit; None takes what is there, else `main`.
        weights: False brings configuration, tokenizer and chat templates only.
        file: which GGUF file to take, see `choosing.gguf`.
        token: an access token, in place of the one that HF_TOKEN holds or `hf auth login` has stored.

    Returns the folder, or the (first) GGUF file. Raises MissingError, CheckpointError, UsageError.
    """
    token = check_token(token)
    target = checkpoints / repo
    with in_words(repo, revision, checkpoints, token), alone(repo, checkpoints):
        there = note.read(target)
        if target.is_dir() and (revision is None or (there and revision == there.commit)):
            names = there.files if there else [path.name for path in target.iterdir()]
            if found := chosen(target, names, weights, file):
                say(f"{repo} is already in {target}{f', at revision {_short(there)}' if there else ''}.")
                return found
        if target.exists() and not there:
            found_there = f"{target} exists, but was not downloaded by Lathe, so that nothing says what it lacks."
            raise MissingError(found_there, fix="Move it away, or give another folder with --checkpoints.")
        listed = listing.read(repo, revision or (there.commit if there else None), token)
        if there and there.commit != listed.commit:
            raise MissingError(
                f"{target} holds revision {_short(there)} of {repo}; {listed.revision} is {listed.commit[:12]} now.",
                "A folder holds one revision.",
                "Remove it, or give another folder with --checkpoints.",
            )
        sizes = {name: listed.files[name].size for name in listed.files}
        names = choosing.wanted(sizes, weights, file, where=f"The repo {repo}")
        files = listing.check(listed, names)
        have = there.files if there else {}
        lacking = [f for f in files if have.get(f.name) != f.digest or not (target / f.name).is_file()]
        if lacking:
            _complete(listed, lacking, target, there, token)
        else:
            say(f"{repo} is already in {target}, at revision {listed.commit[:12]}.")
    return target / names[0] if names[0].endswith(".gguf") else target


def chosen(folder: Path, names: Iterable[str], weights: bool, file: str | None) -> Path | None:
    """The folder, or its GGUF file, if files of these names in it are all that is wanted."""
    if file:
        with suppress(MissingError):
            return folder / choosing.gguf(dict.fromkeys(names), file, str(folder))[0]
        return None
    if not weights:
        return folder if choosing.small(names) or choosing.has_weights(names) else None
    return folder if choosing.has_weights(names) else None


def _complete(listed: Listing, lacking: Sequence[File], target: Path, there: Note | None, token: str | None) -> None:
    """Gather the files that `target` lacks in a folder beside it, and then make that folder, or its files, its own."""
    beside = target.with_name(f".{target.name}.unfinished")
    beside.mkdir(parents=True, exist_ok=True)
    try:
        _gather(beside, listed, lacking, target, token)
    except Exception:
        _tidy(beside)
        raise
    _install(listed, lacking, beside, target, there)


def _gather(beside: Path, listed: Listing, lacking: Sequence[File], target: Path, token: str | None) -> None:
    """Bring the files into the folder `beside`: from an earlier try, from the Hugging Face cache, or from the Hub."""
    begun = time.monotonic()
    arrived = _sort_out(beside, listed, lacking)
    linked = [file for file in lacking if file.name not in arrived and _link(listed, file, beside)]
    coming = [file for file in lacking if file.name not in arrived and file not in linked]
    begin = [fetching.part(beside, file, listed) for file in coming]
    kept = sum(path.stat().st_size for path in begin if path.is_file())
    _check_room(listed, fetching.total(coming) - kept, beside)
    if coming:
        again = f", of which {amount(kept)} is there" if kept else ""
        what = f"{len(coming)} file{'s' * (len(coming) != 1)}, {amount(fetching.total(coming))}{again}"
        say(f"Downloading {listed.repo} into {target}: {what}")
        try:
            with bar(listed.repo, fetching.total(coming), kept) as shown:
                fetching.bring(listed, coming, beside, token, shown)
        except KeyboardInterrupt:
            say("Interrupted. What has arrived is kept: run the same again to go on.")
            raise
    if linked:
        say(f"Took {amount(fetching.total(linked))} of {listed.repo} into {target} from the Hugging Face cache")
    if coming:
        say(f"Downloaded {listed.repo} in {_clock(time.monotonic() - begun)}")


def _tidy(beside: Path) -> None:
    """Leave no trace of a try that brought nothing."""
    for path in beside.rglob("*.part"):
        if not path.stat().st_size:
            path.unlink()
    if [path.name for path in beside.rglob("*") if path.is_file()] == [note.NAME]:
        shutil.rmtree(beside)
        with suppress(OSError):  # not empty: there are other models of that owner
            beside.parent.rmdir()


def _sort_out(beside: Path, listed: Listing, lacking: Sequence[File]) -> set[str]:
    """Names of the files that an earlier try has brought in full; what belongs to another revision is removed."""
    earlier = note.read(beside)
    same = earlier is not None and earlier.commit == listed.commit
    arrived = set()
    for file in lacking:
        path = beside / file.name
        # Under its name a file was verified, but perhaps as that of another revision.
        if path.is_file() and (same or fetching.matches(path, file)):
            arrived.add(file.name)
    keep = {beside / name for name in arrived} | {fetching.part(beside, file, listed) for file in lacking}
    for path in list(beside.rglob("*")):
        if path not in keep and (path.is_file() or path.is_symlink()):
            path.unlink()
    Note(listed.repo, listed.revision, listed.commit, {}).write(beside)
    return arrived


def _link(listed: Listing, file: File, beside: Path) -> bool:
    """Whether the Hugging Face cache holds the file, which is then in `beside` too, with no second copy if possible."""
    from huggingface_hub import constants, try_to_load_from_cache

    cached = try_to_load_from_cache(listed.repo, file.name, revision=listed.commit)
    blob = Path(constants.HF_HUB_CACHE, f"models--{listed.repo.replace('/', '--')}", "blobs")
    sources = [Path(cached)] if isinstance(cached, str) else []
    sources += [blob / file.digest.partition(":")[2]] if file.digest else []
    for source in sources:
        # By its hash where the hash is in its name, else by its size.
        if source.is_file() and file.size in (None, source.stat().st_size):
            goal = beside / file.name
            goal.parent.mkdir(parents=True, exist_ok=True)
            # A link across disks is a symbolic one, and where Windows forbids these a copy. What is small is copied
            # in any case: people edit it, and the cache's file is not to change with theirs.
            ways = (shutil.copyfile,) if choosing.small([file.name]) else (os.link, os.symlink, shutil.copyfile)
            for way in ways:
                with suppress(OSError):
                    way(source.resolve(), goal)
                    return True
            goal.unlink(missing_ok=True)
    return False


def _check_room(listed: Listing, needed: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise MissingError(
            f"Downloading {listed.repo} needs {amount(needed)}; the disk of {folder.parent} has {amount(free)} free.",
            fix="Free some, or give another folder with --checkpoints.",
        )


def _install(listed: Listing, files: Sequence[File], beside: Path, target: Path, there: Note | None) -> None:
    """Make what was gathered the model's: the folder as one, or file by file into the one that is there."""
    whole = {**(there.files if there else {}), **{file.name: file.digest for file in files}}
    result = Note(listed.repo, listed.revision, listed.commit, whole)
    shutil.rmtree(beside / ".cache", ignore_errors=True)  # notes of huggingface_hub's own downloader
    if not target.exists():
        result.write(beside)
        beside.rename(target)
        return
    for file in files:
        (target / file.name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(beside / file.name, target / file.name)  # noqa: PTH105  as atomic on Windows
    result.write(target)
    shutil.rmtree(beside)


@contextmanager
def alone(repo: str, checkpoints: Path) -> Iterator[None]:
    """Hold off other processes that would bring the same repo to the same place; wait, saying so, for one that does."""
    from filelock import FileLock, Timeout

    folder = checkpoints / ".locks"
    folder.mkdir(parents=True, exist_ok=True)
    # The file stays: one that waits for a lock on a removed file would not see the next holder's.
    lock = FileLock(folder / f"{repo.replace('/', '--')}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"Another process is downloading {repo}: waiting for it.")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _short(there: Note) -> str:
    return there.commit[:12] if there.revision == there.commit else f"{there.commit[:12]} ({there.revision})"


def _clock(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}"
