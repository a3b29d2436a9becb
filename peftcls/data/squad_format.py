"""Read the SQuAD format: articles with paragraphs, which have a context and questions (`qas`)."""

import contextlib
import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peftcls.data.text_files import Row
from peftcls.errors import RowError


def read_squad(articles: list[Row], path: Path) -> Iterator[Row]:
    """Read one row per question, with the columns of the Hub's `squad` and the paragraph's number.

    A question without `answers` and without `is_impossible` has None in the column "answers": it is
    not known whether it has an answer.

    Raises:
        RowError: a part is missing or of another type.
    """
    for article_number, article in enumerate(articles, 1):
        place = f"article {article_number}"
        with _reported_at(place, path):
            paragraphs = _objects(article["paragraphs"], "paragraphs")
        for paragraph_number, paragraph in enumerate(paragraphs, 1):
            paragraph_place = f"{place}, paragraph {paragraph_number}"
            with _reported_at(paragraph_place, path):
                questions = _optional_objects(paragraph, "qas")
            for question_number, question in enumerate(questions, 1):
                with _reported_at(f"{paragraph_place}, question {question_number}", path):
                    answers = _answers(question)
                    row = {
                        "id": str(question["id"]),
                        "title": article.get("title", ""),
                        "paragraph": paragraph_number,
                        "context": _text(paragraph, "context"),
                        "question": _text(question, "question"),
                        "answers": answers,
                    }
                yield row


@contextlib.contextmanager
def _reported_at(place: str, path: Path) -> Iterator[None]:
    """Turn any error about a part of the file into a RowError that names its place."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        if type(error) is ValueError:
            problem = str(error)
        elif type(error) is KeyError:
            problem = f"no {error}"
        else:
            problem = f"{type(error).__name__}: {error}"
        raise RowError(
            f"{place} of {path.name} is not in the SQuAD form ({problem}); expected paragraphs "
            "with a context and qas, and in each of these id, question and answers with text "
            "and answer_start."
        ) from None


def _answers(question: Row) -> dict[str, list[Any]] | None:
    """Read the answers of a question; None if the file does not say whether there are any."""
    answers: list[Row] = []
    if question.get("answers", []) is not None:
        answers = _optional_objects(question, "answers")
    is_impossible = question.get("is_impossible")
    if is_impossible is not None and not isinstance(is_impossible, bool):
        raise ValueError(f"is_impossible is {is_impossible!r}, neither true nor false")
    _check_impossible(question, answers)
    texts = [_text(answer, "text") for answer in answers]
    starts = [_answer_start(answer["answer_start"]) for answer in answers]
    if not all(text.strip() for text in texts):
        raise ValueError(
            f"the question {question['id']!r} has an answer without a text; "
            "where there is no answer, answers is an empty list"
        )
    if not is_impossible and question.get("answers") is None:
        return None
    return {"text": texts, "answer_start": starts}


def _check_impossible(question: Row, answers: list[Row]) -> None:
    """Raise a ValueError if `is_impossible` contradicts the answers."""
    is_impossible = question.get("is_impossible")
    is_contradicted = is_impossible is bool(answers)
    if not is_contradicted:
        return
    # An impossible question needs no answers; a possible one does.
    if "answers" in question or is_impossible is False:
        raise ValueError(
            f"is_impossible is {str(is_impossible).lower()} and there are {len(answers)} answers"
        )


def _optional_objects(part: Row, name: str) -> list[Row]:
    """Return a list of objects, which may be missing.

    Raises:
        ValueError: it is missing, but a list has another name: it would be lost without a message.
    """
    if name not in part:
        other_lists = [
            key
            for key, value in part.items()
            if isinstance(value, list) and key != "plausible_answers"
        ]
        other_names = other_lists or difflib.get_close_matches(name, part, 1)
        if other_names:
            raise ValueError(f"no {name!r}, but {other_names[0]!r}")
    return _objects(part.get(name, []), name)


def _objects(value: Any, name: str) -> list[Row]:
    if not isinstance(value, list):
        raise ValueError(f"{name!r} is {json_type_name(value)}, not a list")
    for item in value:
        if not isinstance(item, dict):
            raise ValueError(f"{name!r} has {json_type_name(item)} in it, not an object")
    return value


def _text(part: Row, name: str) -> str:
    value = part[name]
    if not isinstance(value, str):
        raise ValueError(f"{name!r} is {json_type_name(value)}, not a text")
    return value


def _answer_start(value: Any) -> int:
    is_integer = (
        (isinstance(value, int) and not isinstance(value, bool))
        or (isinstance(value, float) and value.is_integer())
        or (isinstance(value, str) and value.isdecimal())
    )
    if not is_integer:
        raise ValueError(f"the answer_start {value!r} is not a number of characters")
    return int(value)


def json_type_name(value: Any) -> str:
    """Name the type of a JSON value in the words of a message."""
    if isinstance(value, bool) or value is None:
        return repr(value)
    if isinstance(value, list):
        return "a list"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, str):
        return "a text"
    return "a number"
