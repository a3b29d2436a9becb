"""`peftcls check`: look for errors and oddities in the rows before training."""

import json

from peftcls.cli.column_guessing import guess_columns
from peftcls.cli.sources import Source
from peftcls.cli.task_building import task_for
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
    max_new_tokens: int | None,
    source: Source,
    as_json: bool,
) -> bool:
    """Print the findings; return whether the rows can be trained on."""
    train_rows = source.read(file)
    columns = guess_columns(train_rows, kind=kind, text=text, label=label)
    settings = {
        "labels": labels,
        "prompt": prompt,
        "max_length": max_length,
        "max_new_tokens": max_new_tokens,
    }
    task = task_for(columns, settings)
    valid_rows = None if valid is None else source.read_other(valid)
    test_rows = None if test is None else source.read_other(test)
    tokenizer = None
    if model is not None:
        from peftcls.models.tokenizers import load_tokenizer_only

        tokenizer = load_tokenizer_only(model)
    examination = examine_rows(task, train_rows, valid_rows, test_rows, tokenizer=tokenizer)
    if as_json:
        print(json.dumps(examination.to_json(), indent=1, ensure_ascii=False))
    else:
        print(f"{columns}\n{examination}")
    return not examination.errors
