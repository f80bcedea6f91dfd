"""A row of a data set, of whatever shape -> a Sample: a conversation, a text, a pair of answers; knows no tokenizer.

What a row is, is seen from its keys:

messages, conversations         a conversation, OpenAI's or ShareGPT's, with `tools`
instruction, input, output      Alpaca's; also question/answer, query/response, inputs/targets, ..., history, system
prompt, completion              a text and how it goes on; messages, where they are messages
chosen, rejected                two answers, as texts or messages, to `prompt`, `conversations` or an instruction
... and label                   one answer, and whether it is wanted (KTO)
text                            a document
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any, TypeAlias, overload

from lathe.data import messages as turns
from lathe.data.files import Record
from lathe.data.messages import Message
from lathe.data.samples import Chat, Completion, Judged, Preference, Sample, Text
from lathe.errors import DataError, did_you_mean

Row: TypeAlias = Mapping[str, Any] | str | Record

_TALKS = ("messages", "conversations", "conversation", "dialogue")
_QUESTIONS = ("instruction", "question", "query", "problem", "inputs", "prompt", "input")
_ANSWERS = ("output", "response", "answer", "completion", "solution", "targets", "target")
_ABOUT = ("input", "context")
_LABELS = ("label", "kto_tag")
_EXPECTED = (
    "A row has messages, conversations, instruction and output, question and answer, prompt and completion, prompt, "
    "chosen and rejected, or text."
)


class Samples(Sequence[Sample]):
    """The samples of rows, each read when it is asked for.

    Args:
        rows: objects, texts, or records, which errors name by their place.
        columns: what a key should be called -> what the rows call it.
    """

    def __init__(self, rows: Sequence[Row], columns: Mapping[str, str] | None = None) -> None:
        self.rows, self.columns = rows, dict(columns or {})

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        """Raises DataError, naming the row."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        row = self.rows[index]
        try:
            return sample(row, self.columns)
        except DataError as error:
            place = row.place if isinstance(row, Record) else f"row {index + 1}"
            raise DataError(f"{place}: {error.found}", error.expected, error.fix) from None

    def place(self, index: int) -> str:
        """Where a row stands, for people: "faq.jsonl, line 3". Raises DataError, naming it, if it cannot be read."""
        row = self.rows[index]
        return str(row.place) if isinstance(row, Record) else f"row {index + 1}"


def parse_columns(words: Sequence[str]) -> dict[str, str]:
    """["prompt=question,completion=answer"] -> {"prompt": "question", "completion": "answer"}. Raises DataError."""
    pairs = [pair.partition("=") for word in words for pair in word.split(",") if pair.strip()]
    bad = next((name for name, equals, old in pairs if not (equals and name.strip() and old.strip())), None)
    if bad is not None:
        raise DataError(f'"{bad}" is not a pair of columns.', fix="Write --columns prompt=question,completion=answer.")
    return {name.strip(): old.strip() for name, _, old in pairs}


def sample(row: Row, columns: Mapping[str, str] | None = None) -> Sample:
    """What a row is. Raises DataError: it has no shape that is known, or something else than that shape holds."""
    if isinstance(row, str):
        return Text(row)
    fields = row.fields if isinstance(row, Record) else row
    if not isinstance(fields, Mapping):
        raise DataError(f"it is a {type(fields).__name__}.", "A row is an object: a name for each column.")
    row = {key: value for key, value in fields.items() if value is not None}
    for name, old in (columns or {}).items():
        if old not in row:
            found = f'there is no column "{old}", only {", ".join(map(str, row))}.'
            raise DataError(found, fix=did_you_mean(old, map(str, row)))
        row = {**row, name: row[old]}
    for read in (_preference, _judged, _answered, _document):
        found_sample = read(row)
        if found_sample is not None:
            return found_sample
    keys = ", ".join(map(str, row)) or "nothing"
    texts = [key for key, value in row.items() if isinstance(value, str)]
    fix = (
        f"Name the columns: --columns prompt={texts[0]},completion={texts[-1]}."
        if len(texts) > 1
        else f"Name the column: --columns text={texts[0]}."
        if texts
        else ""
    )
    raise DataError(f"a row with {keys} has no shape that is known.", _EXPECTED, fix)


# ---- shapes ---------------------------------------------------------------------------------------------------------
def _preference(row: Mapping[str, Any]) -> Preference | None:
    if "chosen_messages" in row and "rejected_messages" in row:
        row = {**row, "chosen": row["chosen_messages"], "rejected": row["rejected_messages"]}
    if "rejected_response" in row and _talk(row) is not None:
        talk = _chat(row)
        if talk.messages[-1:] and talk.messages[-1]["role"] == "assistant":
            last = {"role": "assistant", "content": _string(row, "rejected_response")}
            other = Chat((*talk.messages[:-1], last), talk.tools)
            return Preference(*_continuing(talk, other, len(talk.messages) - 1))
        raise DataError("the conversation that rejected_response belongs to does not end with an answer.")
    if "chosen" not in row or "rejected" not in row:
        return None
    answers = [row["chosen"], row["rejected"]]
    if all(isinstance(answer, str) for answer in answers):
        begun = _begun(row)
        if begun is None:
            prompt = _string(row, "prompt") if "prompt" in row else ""
            return Preference(*(Completion(prompt, answer) for answer in answers))
        answers = [[{"role": "assistant", "content": answer}] for answer in answers]
    else:
        begun = _begun(row) or Chat((), turns.tools(row.get("tools")))
        if isinstance(row.get("prompt"), str):
            begun = Chat(({"role": "user", "content": row["prompt"]},), begun.tools)
    chosen, rejected = (_extended(begun, [answer] if isinstance(answer, Mapping) else answer) for answer in answers)
    if not (chosen.messages and rejected.messages):
        raise DataError("an answer is empty.")
    both = zip(chosen.messages[:-1], rejected.messages[:-1], strict=False)
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], both))
    return Preference(*_continuing(chosen, rejected, max(shared, len(begun.messages))))


def _continuing(chosen: Chat, rejected: Chat, shared: int) -> tuple[Chat, Chat]:
    """Both, with a loss only on what follows the messages that they share."""
    muted = frozenset(range(shared))
    return Chat(chosen.messages, chosen.tools, muted), Chat(rejected.messages, rejected.tools, muted)


def _begun(row: Mapping[str, Any]) -> Chat | None:
    """The conversation that two answers continue, if it is one."""
    if _talk(row) is not None:
        return _chat(row)
    if isinstance(row.get("prompt"), Sequence) and not isinstance(row["prompt"], str):
        return Chat(turns.read(row["prompt"])[0], turns.tools(row.get("tools")))
    question = next((key for key in _QUESTIONS if key in row and key != "prompt"), None)
    return None if question is None else _asked(row, question)


def _extended(begun: Chat, more: Any) -> Chat:
    if not isinstance(more, Sequence) or isinstance(more, str):
        raise DataError("chosen and rejected are not both texts or both messages.")
    added, _ = turns.read(more)
    if added[: len(begun.messages)] == begun.messages:  # the whole conversation stands in the answer too
        return Chat(added, begun.tools)
    return Chat((*begun.messages, *added), begun.tools)


def _judged(row: Mapping[str, Any]) -> Judged | None:
    name = next((name for name in _LABELS if isinstance(row.get(name), bool)), None)
    if name is None:
        return None
    answer = _answered(row)
    if answer is None:
        raise DataError(f"there is a {name}, but no answer that it is about.", "prompt, completion and label, for one.")
    muted = frozenset(at for at, message in enumerate(getattr(answer, "messages", ())[:-1]))
    return Judged(Chat(answer.messages, answer.tools, muted) if isinstance(answer, Chat) else answer, row[name])


def _answered(row: Mapping[str, Any]) -> Chat | Completion | None:
    if _talk(row) is not None:
        return _chat(row)
    question = next((key for key in _QUESTIONS if key in row), None)
    answer = next((key for key in _ANSWERS if key in row), None)
    if question is None or answer is None:
        return None
    if question != "prompt":
        asked = _asked(row, question)
        said = {"role": "assistant", "content": _string(row, answer)}
        return Chat((*asked.messages, said), asked.tools)
    if isinstance(row["prompt"], str):
        return Completion(row["prompt"], _string(row, answer))
    begun = Chat(turns.read(row["prompt"])[0], turns.tools(row.get("tools")))
    said = row[answer]
    whole = _extended(begun, [{"role": "assistant", "content": said}] if isinstance(said, str) else said)
    return Chat(whole.messages, whole.tools, frozenset(range(len(begun.messages))))


def _document(row: Mapping[str, Any]) -> Text | None:
    return Text(_string(row, "text")) if "text" in row else None


# ---- parts of shapes ------------------------------------------------------------------------------------------------
def _talk(row: Mapping[str, Any]) -> Sequence[Any] | None:
    found = next((row[key] for key in _TALKS if key in row), None)
    return found if isinstance(found, Sequence) and not isinstance(found, str) else None


def _chat(row: Mapping[str, Any]) -> Chat:
    messages, muted = turns.read(_talk(row) or ())
    if isinstance(row.get("system"), str) and row["system"] and messages[:1] and messages[0]["role"] != "system":
        messages = ({"role": "system", "content": row["system"]}, *messages)
        muted = frozenset(at + 1 for at in muted)
    return Chat(messages, turns.tools(row.get("tools")), muted)


def _asked(row: Mapping[str, Any], question: str) -> Chat:
    """The system message, earlier questions with their answers, and the question of a row like Alpaca's."""
    messages: list[Message] = []
    if isinstance(row.get("system"), str) and row["system"]:
        messages.append({"role": "system", "content": row["system"]})
    for pair in row.get("history") or ():
        if not (isinstance(pair, Sequence) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise DataError("history is not made of pairs of texts.", 'It is [["question", "answer"], ...].')
        messages += [{"role": role, "content": text} for role, text in zip(("user", "assistant"), pair, strict=True)]
    asked: Message = {"role": "user", "content": _string(row, question)}
    about = next((key for key in _ABOUT if key in row and key != question), None)
    if about is not None and _string(row, about):
        asked["input"] = _string(row, about)
    return Chat((*messages, asked), turns.tools(row.get("tools")))


def _string(row: Mapping[str, Any], key: str) -> str:
    if not isinstance(row[key], str):
        raise DataError(f'"{key}" is not a text: {str(row[key])[:40]}.', fix="Turn it into one.")
    return row[key]
