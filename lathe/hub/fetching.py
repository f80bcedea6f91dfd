"""Files of a listing arrive in a folder, several at a time; what was cut off goes on where it stopped; all is verified.

huggingface_hub's own download begins a file anew after a cut, so the bytes are taken from its HTTP session here.
"""

from __future__ import annotations

import os
import queue
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from threading import Event, Thread

from lathe.errors import CheckpointError
from lathe.hub.bar import Bar
from lathe.hub.listing import File, Listing

CONNECTIONS = 4
PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before each further try, as long as nothing new arrives
BUSY = (408, 429, 500, 502, 503, 504)  # answers that may be others the next time
PIECE = 1 << 20  # bytes to read of a file at once


def part(folder: Path, file: File, listing: Listing) -> Path:
    """Where a file's bytes wait until it is whole; that of another version of the file is another place."""
    version = file.digest.partition(":")[2] or listing.commit
    return folder / f"{file.name}.{version[:12]}.part"


def matches(path: Path, file: File) -> bool:
    """Whether a file on disk is this one, by its hash; where none is told, by its size."""
    if not path.is_file() or (file.size is not None and path.stat().st_size != file.size):
        return False
    hasher = file.hasher()
    for piece in _pieces(path):
        hasher.update(piece)
    return not file.digest or hasher.hexdigest() == file.digest.partition(":")[2]


def bring(listing: Listing, files: Sequence[File], folder: Path, token: str | None, bar: Bar) -> None:
    """Download `files` into `folder`. Each appears under its name when it is whole and verified.

    Raises CheckpointError for a file that is not what the Hub says, and whatever huggingface_hub raises.
    """
    waiting: queue.SimpleQueue[File] = queue.SimpleQueue()
    done: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
    stop = Event()
    for file in files:
        waiting.put(file)

    def work() -> None:
        while not stop.is_set():
            try:
                fetch(listing, waiting.get_nowait(), folder, token, bar, stop)
            except queue.Empty:
                return
            except BaseException as error:  # the thread's end is told to the one that waits for it
                done.put(error)
                return
            done.put(None)

    # Daemons: whoever interrupts a download does not wait for a silent server. What they wrote is on the disk.
    threads = [Thread(target=work, daemon=True) for _ in range(min(CONNECTIONS, len(files)))]
    try:
        for thread in threads:
            thread.start()
        for _ in files:
            error = _next(done)
            if error:
                raise error
    finally:
        stop.set()
        patience = time.monotonic() + 2
        for thread in threads:
            if thread.ident:
                thread.join(timeout=max(0, patience - time.monotonic()))


def _next(done: queue.SimpleQueue[BaseException | None]) -> BaseException | None:
    while True:  # in short waits: Windows lets nobody interrupt a long one
        try:
            return done.get(timeout=0.2)
        except queue.Empty:
            continue


def fetch(listing: Listing, file: File, folder: Path, token: str | None, bar: Bar, stop: Event) -> None:
    """Download one file, going on where an earlier try was cut off, until it is whole or `stop` is set."""
    from huggingface_hub import constants

    target, beside = folder / file.name, part(folder, file, listing)
    target.parent.mkdir(parents=True, exist_ok=True)
    if file.size and file.size > constants.MAX_HTTP_DOWNLOAD_SIZE:
        return _fetch_huge(listing, file, folder, token, bar)
    if beside.exists():
        bar.note("reading what is there")
    with Arrival(beside, file, bar) as arrival:
        bar.note("")
        _gather(listing, file, token, arrival, bar, stop)
        whole, digest = arrival.whole, arrival.hasher.hexdigest()
    if whole:
        _verify(listing, file, beside, digest)
        os.replace(beside, target)  # noqa: PTH105  as atomic on Windows
    return None


def _gather(listing: Listing, file: File, token: str | None, arrival: Arrival, bar: Bar, stop: Event) -> None:
    """Ask for what is missing of a file until nothing is, trying again as long as something comes."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    pauses = iter(PAUSES)
    while not arrival.whole and not stop.is_set():
        before = arrival.size
        try:
            _stream(listing, file, token, arrival, stop)
            if not arrival.whole and not stop.is_set():
                raise HTTPError(f"{file.name} ended after {arrival.size} of {file.size} bytes")
        except HTTPError as error:  # of whichever HTTP library huggingface_hub stands on
            if isinstance(error, HfHubHTTPError) and error.response.status_code not in BUSY:
                raise
            if arrival.size > before:
                pauses = iter(PAUSES)
            pause = next(pauses, None)
            if pause is None:
                raise
            bar.note("cut off, trying again")
            stop.wait(pause)
            bar.note("")


class Arrival:
    """The bytes of one file so far: on disk, and in a hash."""

    def __init__(self, path: Path, file: File, bar: Bar) -> None:
        self.file, self.bar, self.ended = file, bar, False
        self.size, self.hasher = 0, file.hasher()
        self._open = path.open("r+b" if path.exists() else "w+b", buffering=0)
        if file.size is None or path.stat().st_size > file.size:
            self.restart()
        for piece in _pieces(path):
            self.hasher.update(piece)
            self.size += len(piece)
        self._open.seek(self.size)

    @property
    def whole(self) -> bool:
        return self.ended if self.file.size is None else self.size >= self.file.size

    def restart(self) -> None:
        """Forget what has arrived."""
        self.bar.advance(-self.size)
        self.size, self.hasher = 0, self.file.hasher()
        self._open.seek(0)
        self._open.truncate()

    def take(self, piece: bytes) -> None:
        left = memoryview(piece)
        while left:  # an unbuffered write may take a part only
            left = left[self._open.write(left) :]
        self.hasher.update(piece)
        self.size += len(piece)
        self.bar.advance(len(piece))

    def __enter__(self) -> Arrival:
        return self

    def __exit__(self, *_: object) -> None:
        # To the disk, so that no power cut leaves an empty file under a good name.
        with self._open:
            os.fsync(self._open.fileno())


def _stream(listing: Listing, file: File, token: str | None, arrival: Arrival, stop: Event) -> None:
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    url = hf_hub_url(listing.repo, file.name, revision=listing.commit)
    headers = build_hf_headers(token=token) | {"Accept-Encoding": "identity"}
    if arrival.size:
        headers["Range"] = f"bytes={arrival.size}-"
    # The session sends the token to the Hub only: not on to where the Hub redirects for a large file.
    with get_session().stream("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as response:
        hf_raise_for_status(response)
        begins = response.headers.get("Content-Range", "")
        if arrival.size and not (response.status_code == 206 and begins.startswith(f"bytes {arrival.size}-")):
            arrival.restart()  # it sends the whole file, asked or not
        for piece in response.iter_bytes():
            if stop.is_set():
                return
            arrival.take(piece)
            if file.size is not None and arrival.size > file.size:
                break  # never fill a disk with what was not announced
        arrival.ended = True


def _verify(listing: Listing, file: File, path: Path, digest: str) -> None:
    kind, _, told = file.digest.partition(":")
    size = path.stat().st_size
    if told and digest != told:
        wrong = f"its {'SHA-256' if kind == 'sha256' else 'git hash'} is {digest}, and the Hub says {told}"
    elif file.size is not None and size != file.size:
        wrong = f"it has {size} bytes, and the Hub says {file.size}"
    else:
        return
    path.unlink()
    raise CheckpointError(
        f"{file.name} of {listing.repo} did not arrive as it was sent: {wrong}.",
        fix="It was removed. Run the same again; if that gives the same, do not trust this repo.",
    )


def _fetch_huge(listing: Listing, file: File, folder: Path, token: str | None, bar: Bar) -> None:
    """What the Hub does not send by HTTP in one piece comes by its own protocol, and begins anew after a cut."""
    from huggingface_hub import hf_hub_download

    path = Path(hf_hub_download(listing.repo, file.name, revision=listing.commit, local_dir=folder, token=token))
    bar.advance(file.size or 0)
    if not matches(path, file):
        hasher = file.hasher()
        for piece in _pieces(path):
            hasher.update(piece)
        _verify(listing, file, path, hasher.hexdigest())


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            yield piece


def total(files: Iterable[File]) -> int:
    return sum(file.size or 0 for file in files)
