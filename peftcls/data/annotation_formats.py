"""Rows of annotation tools and chats as plain columns: Label Studio, doccano, conversations."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from peftcls.data.choices import chosen_value, labels_in_tree
from peftcls.data.text_files import Row
from peftcls.errors import RowError

SPANS = "spans"
"""The column of marked parts of a text: objects with start, end and label."""
# The columns of a conversation, with the fields for who speaks and for what is said.
CONVERSATIONS = {"messages": ("role", "content"), "conversations": ("from", "value")}
SPEAKERS = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
EARLIER_TURNS = "earlier_turns"
"""The column of the turns before the last question: objects with role and content."""
MAX_SHOWN_TURNS = 8


def plain_rows(rows: Iterable[Row], path: Path) -> Iterator[Row]:
    """Rows as they are, or with plain columns where they come from an annotation tool or a chat.

    Raises:
        RowError: a row is not like the others of its kind; the message names it.
    """
    for number, row in enumerate(rows, 1):
        try:
            yield plain_row(row)
        except ValueError as error:
            raise RowError(f"row {number} of {path.name} {error}.") from None


def plain_row(row: Row) -> Row:
    """A row as `plain_rows` gives it. Raises a ValueError that follows the row's number."""
    if isinstance(row.get("data"), dict) and isinstance(row.get("annotations"), list):
        return _label_studio_row(row)
    for column, fields in CONVERSATIONS.items():
        if _is_conversation(row.get(column), fields):
            return _conversation_row(row, column, fields)
    return _doccano_row(_label_studio_short_row(row))


# Conversations


def holds_conversations(row: Row) -> bool:
    """Whether a row is a chat."""
    return any(
        _is_conversation(row.get(column), fields) for column, fields in CONVERSATIONS.items()
    )


def _is_conversation(turns: Any, fields: tuple[str, str]) -> bool:
    if not isinstance(turns, list) or not turns:
        return False
    return all(isinstance(turn, dict) and set(fields) <= set(turn) for turn in turns)


def _conversation_row(row: Row, column: str, fields: tuple[str, str]) -> Row:
    """A conversation as instruction, input and output, of its last question and answer.

    The system's text is the instruction, and the user's the input; without a system's text the
    user's is the instruction. Earlier questions and answers are in a column of their own.
    """
    speaker_field, text_field = fields
    texts: list[tuple[str, str]] = []
    for turn in row[column]:
        speaker = SPEAKERS.get(str(turn[speaker_field]))
        if speaker is None:
            raise ValueError(
                f"has a turn by {turn[speaker_field]!r} in column {column!r}, expected texts by "
                f"{sorted(SPEAKERS)}"
            )
        texts.append((speaker, _text_of_turn(turn[text_field], column)))
    system = texts.pop(0)[1] if texts[0][0] == "system" else None
    _check_turns([speaker for speaker, _ in texts], column)
    answer = texts.pop()[1] if texts[-1][0] == "assistant" else None
    question = texts.pop()[1]
    plain = {name: value for name, value in row.items() if name != column}
    plain["instruction"] = question if system is None else system
    plain["input"] = "" if system is None else question
    plain["output"] = answer
    if texts:
        plain[EARLIER_TURNS] = [{"role": speaker, "content": text} for speaker, text in texts]
    return plain


def _text_of_turn(content: Any, column: str) -> str:
    """What is said in a turn: a text, or several parts of the type "text", each a paragraph."""
    parts = [{"type": "text", "text": content}]
    if isinstance(content, list) and content:
        parts = content
    texts = []
    for part in parts:
        text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, dict) else None
            found = repr(content)[:60] if kind in (None, "text") else f"a part of the type {kind!r}"
            raise ValueError(f"has a turn with {found} in column {column!r}, expected a text")
        texts.append(text)
    return "\n".join(texts)


def _check_turns(speakers: list[str], column: str) -> None:
    """Raise ValueError unless questions and answers follow each other."""
    expected = ["user", "assistant"] * len(speakers)
    if speakers and speakers == expected[: len(speakers)]:
        return
    more = ", ..." if len(speakers) > MAX_SHOWN_TURNS else ""
    shown = ", ".join(map(repr, speakers[:MAX_SHOWN_TURNS]))
    raise ValueError(
        f"has the turns [{shown}{more}] in column {column!r}, expected one question and one "
        "answer, or several in turn: ['user', 'assistant', 'user', 'assistant'], with one "
        "'system' before them or without; begin with a question, and join what one says twice"
    )


# Label Studio


def _label_studio_row(row: Row) -> Row:
    """A task of Label Studio's export (JSON): its data, and a column for each question."""
    plain: Row = dict(row["data"])
    annotations = [each for each in row["annotations"] if not each.get("was_cancelled")]
    if len(annotations) > 1:
        raise ValueError(
            f"has {len(annotations)} annotations (task {row.get('id')}), expected one; keep the "
            "one that is right"
        )
    results = annotations[0].get("result", []) if annotations else []
    for result in results:
        name = str(result.get("from_name", "label"))
        value = result.get("value", {})
        if name in row["data"]:
            raise ValueError(f"has a question {name!r} and data of the same name; rename one")
        if "choices" in value:
            plain[name] = [*plain.get(name, []), *value["choices"]]
        elif "labels" in value and "start" in value:
            plain.setdefault(SPANS, []).extend(_spans(value))
        elif "taxonomy" in value:
            plain[name] = [*plain.get(name, []), *labels_in_tree(value["taxonomy"])]
        elif "rating" in value or "number" in value:
            plain[name] = value.get("rating", value.get("number"))
        elif "text" in value:
            texts = value["text"]
            plain[name] = "\n".join(texts) if isinstance(texts, list) else texts
        else:
            raise ValueError(
                f"has a result of the type {result.get('type')!r}, expected choices, a place in a "
                "taxonomy, labels of parts of a text, a rating, a number or a text"
            )
    return plain


def with_choices_as_lists(rows: list[Row]) -> list[Row]:
    """Rows of Label Studio's short export (JSON-MIN), in which a single choice is no list.

    In a question for which one row has several choices, every row gets a list of them.
    """
    questions = {
        name
        for row in rows
        for name, cell in row.items()
        if isinstance(cell, dict) and chosen_value(cell) is not cell
    }
    if not questions:
        return rows
    return [
        {
            name: [cell] if name in questions and isinstance(cell, str) else cell
            for name, cell in row.items()
        }
        for row in rows
    ]


def _label_studio_short_row(row: Row) -> Row:
    """A row of the short export with several choices as a list, and marked parts in `spans`."""
    if not any(isinstance(cell, dict | list) for cell in row.values()):
        return row
    plain: Row = {}
    for name, cell in row.items():
        if SPANS not in row and _is_marked_parts(cell):
            for part in cell:
                plain.setdefault(SPANS, []).extend(_spans(part))
        else:
            plain[name] = chosen_value(cell)
    return plain


def _is_marked_parts(cell: Any) -> bool:
    if not isinstance(cell, list) or not cell:
        return False
    # Those of a web page or of speech have no places in a text.
    return all(
        isinstance(part, dict)
        and isinstance(part.get("start"), int)
        and isinstance(part.get("end"), int)
        and isinstance(part.get("labels"), list)
        for part in cell
    )


def _spans(part: Row) -> list[Row]:
    """A marked part of a text, once for each of its labels."""
    start, end = int(part["start"]), int(part["end"])
    return [{"start": start, "end": end, "label": label} for label in part["labels"]]


# doccano


def _doccano_row(row: Row) -> Row:
    """A row of doccano whose labels have places in the text; any other row as it is."""
    if _is_span_list(row.get("label")):
        spans = [{"start": start, "end": end, "label": name} for start, end, name in row["label"]]
        return {**{name: value for name, value in row.items() if name != "label"}, SPANS: spans}
    entities = row.get("entities")
    if isinstance(entities, list) and "relations" in row:
        spans = [
            {"start": each["start_offset"], "end": each["end_offset"], "label": each["label"]}
            for each in entities
        ]
        kept = {name: value for name, value in row.items() if name not in ("entities", "relations")}
        return {**kept, SPANS: spans}
    return row


def _is_span_list(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(each, list) and len(each) == 3 for each in value)
        and all(isinstance(each[0], int) and isinstance(each[2], str) for each in value)
    )
