"""Parse the body of a request: strict JSON with texts or rows, and perhaps the name of an adapter.

A wrong body is refused with one sentence, before any of it reaches a task or a tokenizer.
"""

import dataclasses
import difflib
import json
import math
from collections.abc import Sequence
from typing import Any

from peftcls.data.column_types import ColumnTypeError, check_text
from peftcls.data.reading import Row
from peftcls.serving.limits import Limits, RefusedError
from peftcls.tasks.base import Task

KEYS = ("adapter", "rows", "texts")
FORM = 'expected an object such as {"texts": ["See you at lunch?"]}'
UNPROCESSABLE = 422
TOO_LARGE = 413


@dataclasses.dataclass(frozen=True)
class Body:
    """What a request asks: texts or rows, as they were sent, and which adapter is to answer.

    Args:
        adapter: a name, or None for the default.
        source: "texts" or "rows".
        items: the texts, the pairs of texts, or the rows.
    """

    adapter: str | None
    source: str
    items: list[Any]

    def rows_for(self, task: Task) -> list[Row]:
        """The rows with the columns of a task.

        Raises:
            RowError: a bare text does not fit the task.
        """
        return self.items if self.source == "rows" else task.rows_of(self.items)


def parse_body(content: bytes, limits: Limits) -> Body:
    """Parse and check the body of a request.

    Raises:
        RefusedError: it is not such an object, or has too many rows.
    """
    fields = _parse_json(content)
    if not isinstance(fields, dict):
        raise _wrong(f"the body is {_name_type(fields)}, {FORM}.")
    for key in fields:
        if key not in KEYS:
            raise _wrong(_unknown_key(key))
    adapter = fields.get("adapter")
    if not isinstance(adapter, str | None):
        raise _wrong(f"'adapter' is {_name_type(adapter)}, expected the name of an adapter.")
    sources = [name for name in ("texts", "rows") if name in fields]
    if len(sources) != 1:
        found = "both 'texts' and 'rows'" if sources else "neither 'texts' nor 'rows'"
        raise _wrong(f"the body has {found}, {FORM}.")
    source = sources[0]
    items = fields[source]
    if not isinstance(items, list):
        raise _wrong(f"{source!r} is {_name_type(items)}, expected a list.")
    if len(items) > limits.max_rows:
        raise RefusedError(
            TOO_LARGE,
            f"the request has {len(items)} {source}, expected at most {limits.max_rows}; "
            "send several requests.",
        )
    check_item = _check_text_item if source == "texts" else _check_row
    for number, item in enumerate(items, 1):
        check_item(item, number)
    return Body(adapter, source, items)


def _parse_json(content: bytes) -> Any:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _wrong(f"the body is not UTF-8: byte {error.start + 1} fits no character.") from None
    try:
        return json.loads(
            text,
            object_pairs_hook=_unique_keys,
            parse_constant=_refuse_constant,
            parse_float=_finite_number,
        )
    except json.JSONDecodeError as error:
        raise _wrong(
            f"the body is not JSON: {error.msg} in line {error.lineno}, column {error.colno}; "
            f"{FORM}."
        ) from None
    except RecursionError:
        raise _wrong(
            f"the body has lists or objects too deep inside one another; {FORM}."
        ) from None
    except ValueError:
        # Python reads no whole number of more than 4300 digits.
        raise _wrong("the body has a number with thousands of digits.") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise _wrong(f"an object has the key {repeated!r} twice; give it once.")
    return found


def _refuse_constant(name: str) -> Any:
    raise _wrong(f"the body has {name}, which is not JSON; expected finite numbers.")


def _finite_number(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise _wrong(f"the body has the number {digits[:40]}, expected finite numbers.")
    return number


def _check_text_item(item: Any, number: int) -> None:
    """Check an item of `texts`: a text, or a list of texts."""
    parts = item if isinstance(item, list) else [item]
    for part in parts:
        if not isinstance(part, str):
            raise _wrong(
                f"text {number} is or has {_name_type(part)}, expected a text or a pair of texts."
            )
        _check_characters(part, f"text {number}")


def _check_row(row: Any, number: int) -> None:
    """Check an item of `rows`: an object whose values are texts, numbers, or lists of them."""
    if not isinstance(row, dict):
        raise _wrong(f"row {number} is {_name_type(row)}, expected an object with its columns.")
    for column, value in row.items():
        _check_characters(column, f"row {number}, in the name of a column,")
        parts = value if isinstance(value, list) else [value]
        for part in parts:
            if isinstance(part, list | dict):
                raise _wrong(
                    f"row {number} has {_name_type(part)} inside column {column!r}, expected a "
                    "text, a number, or a list of them."
                )
            if isinstance(part, str):
                _check_characters(part, f"row {number}, in column {column!r},")


def _check_characters(text: str, place: str) -> None:
    try:
        check_text(text)
    except ColumnTypeError as error:
        raise _wrong(f"{place} has {error.value_type}.") from None


def _unknown_key(key: str) -> str:
    message = f"the body has the key {key!r}, expected 'texts' or 'rows', and perhaps 'adapter'"
    similar = difflib.get_close_matches(key[:80], KEYS, 1)
    return f"{message}; did you mean {similar[0]!r}?" if similar else f"{message}."


def adapter_name(body: Body, names: Sequence[str]) -> str:
    """The adapter that is to answer; the first one where the body names none.

    Raises:
        RefusedError: there is no adapter of that name.
    """
    if body.adapter is None:
        return names[0]
    if body.adapter in names:
        return body.adapter
    message = f"there is no adapter {body.adapter!r}, expected one of {list(names)}"
    similar = difflib.get_close_matches(body.adapter[:80], names, 1)
    raise _wrong(f"{message}; did you mean {similar[0]!r}?" if similar else f"{message}.")


def _name_type(value: Any) -> str:
    """Name the JSON type of a value in the words of a message."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, str):
        return "a text"
    if isinstance(value, int | float):
        return "a number"
    return "a list" if isinstance(value, list) else "an object"


def _wrong(sentence: str) -> RefusedError:
    return RefusedError(UNPROCESSABLE, sentence)
