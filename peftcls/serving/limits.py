"""The limits of a service, and how it says that a request is refused."""

import dataclasses
import math

from peftcls.argument_checks import check_argument_types

MAX_SENTENCE_CHARACTERS = 500


@dataclasses.dataclass(frozen=True)
class Limits:
    """How much a service takes on.

    Args:
        max_body_bytes: of one request; a larger one gets the status 413.
        max_rows: of one request; one with more gets the status 413.
        max_row_tokens: of one row in all its windows; a longer one gets the status 413.
        max_open_requests: how many requests may be read, wait or be answered at a time; one more
            gets the status 503.
        timeout_seconds: how long a request may take, from its first byte to its answers.
        batch_size: at most this many rows of waiting requests are answered together. Their tokens
            are limited too, to what suits one forward pass on the device.

    Raises:
        ValueError: a value has a wrong type or is not positive.
    """

    max_body_bytes: int = 1024 * 1024
    max_rows: int = 256
    max_row_tokens: int = 32768
    max_open_requests: int = 512
    timeout_seconds: float = 30.0
    batch_size: int = 256

    def __post_init__(self) -> None:
        check_argument_types(vars(self), Limits)
        problems = []
        for name, value in vars(self).items():
            if not 0 < value < math.inf:
                problems.append(f"{name}={value!r}: expected a number above 0")
        if problems:
            raise ValueError("; ".join(problems) + ".")


class RefusedError(Exception):
    """A request is not answered.

    Args:
        status: of HTTP.
        sentence: says why, and what to do.
        retry_seconds: when to ask again, if that can help.
    """

    def __init__(self, status: int, sentence: str, retry_seconds: int | None = None) -> None:
        super().__init__(shorten(sentence))
        self.status = status
        self.retry_seconds = retry_seconds


def shorten(sentence: str) -> str:
    """Cut a sentence that repeats a long part of a request."""
    if len(sentence) <= MAX_SENTENCE_CHARACTERS:
        return sentence
    return f"{sentence[:MAX_SENTENCE_CHARACTERS]} ..."
