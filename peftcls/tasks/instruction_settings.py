"""What can be wrong with the settings of an instruction task, once their types are right."""

from collections.abc import Iterator, Sequence

MAX_SAMPLES = 64


def lists_remark(lists: int) -> str:
    """What a program that knows no drawn lists does otherwise."""
    return (
        f"transformers gives one list; the answers here are what at least two of {lists} drawn "
        "lists have in common."
    )


def template_problems(template: str) -> Iterator[str]:
    """What is wrong with a prompt."""
    documents = template.count("{input}")
    if not template.strip():
        yield "template is empty: expected a text with {input}"
    if documents > 1:
        yield f"template has {{input}} {documents} times: expected a text that has it once"


def answer_problems(
    labels: Sequence[str] | None, separator: str | None, samples: int | None
) -> Iterator[str]:
    """What is wrong with how an answer is made.

    Args:
        labels: the closed set of answers, if there is one.
        separator: of a list-like answer.
        samples: lists that are drawn for an answer, if that is said.
    """
    if labels is not None and len(labels) < 2:
        yield f"labels={labels}: expected two or more different labels"
    if labels is not None and separator is not None:
        yield "labels and separator: an answer is one of a closed set or a list, not both"
    if separator == "":
        yield "separator='': expected a text such as ';'"
    if samples is None:
        return
    if not 1 <= samples <= MAX_SAMPLES:
        yield f"samples={samples}: expected a number of lists from 1 to {MAX_SAMPLES}"
    elif separator is None and samples > 1:
        yield f"samples={samples} without separator: only lists can agree in parts"
