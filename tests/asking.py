"""What stands on a workshop's PATH as `lathe` and as `python`: it has its words run by the process of forking.py, with
this one's files, signals and exit status.

A server (`lathe serve`, `lathe runs`) goes on in the background when it has said where it is and has been asked
something; the next one, or `end`, ends it as its user would. Imports little: it is started for every command of a page,
and pathlib alone would double what that takes.
"""

# ruff: noqa: PTH107, PTH109, PTH110, PTH116, PTH118, PTH123
import json
import os
import re
import signal
import socket
import sys
import time

PATIENCE = 60  # seconds until a server answers, or has ended


def main(words):
    place = os.environ["WORKSHOP"]
    if words[1:2] not in (["serve"], ["runs"]) or {"--dry-run", "--help", "--print-config"} & {*words}:
        return follow(asked(place, words, standing(place)))
    end(place)
    return begin(place, words)


def standing(place):
    """The files of this process. What a page's reader types is there anew for every command."""
    said = os.path.join(place, ".said")
    mine = os.fstat(0)
    return [os.open(said, os.O_RDONLY) if os.path.samestat(mine, os.stat(said)) else 0, 1, 2]


def asked(place, words, files):
    """A connection over which the process that runs the words says its id, and then its exit status."""
    link = socket.socket(socket.AF_UNIX)
    with open(os.path.join(place, ".address"), encoding="utf-8") as file:
        link.connect(file.read())
    request = json.dumps([words, os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(link, [len(request).to_bytes(8, "little")], files)
    link.sendall(request)
    return link.makefile("rw")


def follow(answers):
    pid = int(answers.readline())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: os.kill(pid, number))
    return int(answers.readline() or 1)


def begin(place, words):
    """Start a server and leave it when it has answered."""
    log = os.path.join(place, ".log")
    with open(log, "w", encoding="utf-8") as out, open(os.devnull, encoding="utf-8") as nothing:
        answers = asked(place, words, [nothing.fileno(), out.fileno(), out.fileno()])
    pid, until = int(answers.readline()), time.monotonic() + PATIENCE
    while not (found := re.search(r"http://([\d.]+:\d+)", text := read(log))):
        if os.path.exists(os.path.join(place, f".{pid}")) or time.monotonic() > until:
            sys.stderr.write(text)
            return int(read(os.path.join(place, f".{pid}")) or 1)
        time.sleep(0.02)
    answers.write("go on\n")
    answers.flush()
    with open(os.path.join(place, ".serving"), "w", encoding="utf-8") as file:
        json.dump([pid, words], file)
    question(found[1].replace("0.0.0.0", "127.0.0.1"), words)
    sys.stderr.write(read(log))
    return 0


def question(address, words):
    """Ask a server something that it must answer."""
    from http.client import HTTPConnection

    link, headers = HTTPConnection(address, timeout=PATIENCE), {"Content-Type": "application/json"}
    for option in ("--api-key-file", "--admin-key"):
        if option in words:
            key = words[words.index(option) + 1]
            headers["X-Api-Key"] = read(key).split()[0] if option.endswith("file") else key
    until = time.monotonic() + PATIENCE
    while True:
        if words[1] == "runs":
            link.request("GET", "/")
        else:
            link.request("POST", "/v1/completions", json.dumps({"prompt": "Once", "max_tokens": 2}), headers)
        answer = link.getresponse()
        told = answer.read().decode()
        if answer.status != 503 or time.monotonic() > until:  # an engine behind the gate is not there yet
            break
        time.sleep(0.1)
    if answer.status != 200:
        sys.exit(f"{' '.join(words)} answered {answer.status}: {told}")


def end(place):
    """End the server that goes on, as Ctrl-C (a page of runs) or SIGTERM does. Its exit status must be 0."""
    file = os.path.join(place, ".serving")
    if not os.path.exists(file):
        return
    pid, words = json.loads(read(file))
    os.remove(file)
    os.kill(pid, signal.SIGINT if words[1] == "runs" else signal.SIGTERM)
    until = time.monotonic() + PATIENCE
    while not (status := read(os.path.join(place, f".{pid}"))) and time.monotonic() < until:
        time.sleep(0.02)
    if status != "0":
        sys.exit(f"{' '.join(words)} ended with status {status or 'none'}: {read(os.path.join(place, '.log'))}")


def read(file):
    try:
        with open(file, encoding="utf-8") as opened:
            return opened.read()
    except OSError:
        return ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
