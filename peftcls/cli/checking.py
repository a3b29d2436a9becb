"""`peftcls check`: what is wrong, or odd, with the rows, before anything is trained."""

import json

from peftcls.cli.column_guessing import guess_columns, listed_labels, task_for
from peftcls.data.reading import read_rows
from peftcls.models.tokenizers import load_tokenizer_only
from peftcls.quality.examine import examine_rows


def check_files(
    *,
    file: str,
    kind: str | None,
    text: tuple[str, ...],
    label: str | None,
    labels: str | None,
    prompt: str | None,
    valid: str | None,
    test: str | None,
    model: str | None,
    max_length: int | None,
    encoding: str | None,
    as_json: bool,
) -> bool:
    """Print what was found; whether the rows can be trained on."""
    rows = read_rows(file, encoding=encoding)
    columns = guess_columns(rows, kind=kind, text=text, label=label)
    task = task_for(columns, labels=listed_labels(labels), prompt=prompt, max_length=max_length)
    held, last = (
        None if given is None else read_rows(given, encoding=encoding) for given in (valid, test)
    )
    found = examine_rows(
        task, rows, held, last, tokenizer=None if model is None else load_tokenizer_only(model)
    )
    if as_json:
        print(json.dumps(found.to_json(), indent=1, ensure_ascii=False))
    else:
        print(f"{columns}\n{found}")
    return not found.errors
