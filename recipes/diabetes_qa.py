r"""Find the answers to patients' questions in a clinic's document: extractive QA with LoRA.

    accelerate launch recipes/diabetes_qa.py
    accelerate launch recipes/diabetes_qa.py --train your.json --valid held_out.json
    python recipes/diabetes_qa.py --out runs/diabetes_qa --ask "When should my feet be checked?"
    accelerate launch recipes/diabetes_qa.py \
        --train new_pages.json --start runs/diabetes_qa --replay your.json --out runs/next

The files are in the SQuAD form (1.1 or 2.0), as annotation tools export it, or tables with the
columns question, context and answers. `--ask` finds the pages of --train that fit the question, and
answers from them with the adapter in --out, without training. `--start` continues training from a
saved folder, with a share of the rows of `--replay` so that the old pages are not forgotten.
"""

import peftcls
from peftcls.recipe import (
    adapter_layers,
    check_first,
    finish_recipe,
    only_dry_run,
    read_tables,
    recipe_options,
    run_recipe,
    train_config,
)

PAGES_READ = 5
MAX_PAGES_SHOWN = 3
CHARACTERS_SHOWN = 60  # on both sides of an answer


def main() -> None:
    options = recipe_options(
        __doc__,
        data="diabetes",
        kind="json",
        out="runs/diabetes_qa",
        max_length=320,
        ask="a question to answer from the pages of --train by the adapter in --out; no training",
        start="a saved folder to continue training from",
        replay="rows that --start was trained on, to keep a share of them",
    )
    if options.ask is None:
        train(options)
    else:
        ask(options)


def ask(options) -> None:
    if not options.ask.strip():
        raise ValueError(f"--ask {options.ask!r}: expected a question.")
    pages = peftcls.Passages(peftcls.read_rows(options.train)["context"])
    predictor = peftcls.load_predictor(options.out)
    found = pages.ask(predictor, options.ask, read=PAGES_READ)
    for each in found[:MAX_PAGES_SHOWN]:
        answer = each.answer
        page = pages.texts[each.passage]
        before = page[max(answer.start - CHARACTERS_SHOWN, 0) : answer.start]
        after = page[answer.end : answer.end + CHARACTERS_SHOWN]
        print(f"{each.score:.2f}  {answer.text}")
        print(f"      ...{before}[{answer.text}]{after}...")
    print("" if found else "no page answers this question")


def train(options) -> None:
    new, valid, test = read_tables(options)
    old = peftcls.read_rows(options.replay) if options.replay else None
    rows = new if old is None else peftcls.with_replay(new, old, seed=options.seed)
    model, task, tokenizer = make_model(options, rows)
    check_first(task, options, test)
    config = train_config(options, task, rows)
    with peftcls.Trainer(model, task, tokenizer, config) as trainer:
        if only_dry_run(trainer, options, new):
            return
        tables = {"old rows": old, "new rows": new, "test rows": test}
        tables = {name: table for name, table in tables.items() if table and options.start}
        before = {name: trainer.evaluate(table) for name, table in tables.items()}
        trainer.fit(rows, valid, resume=options.resume)
        if valid and task.unanswerable and any(task.answerable(valid)):
            trainer.calibrate(valid)
        if options.start:
            after = {name: trainer.evaluate(table) for name, table in tables.items()}
            print(peftcls.compare_scores(before, after))
        finish_recipe(trainer, options, new, test, {})


def make_model(options, rows):
    """A new adapter on --model, or the saved one in --start."""
    if options.start is not None:
        model, task, tokenizer = peftcls.learn_on(options.start, rows, quantize=options.quantize)
        if not isinstance(task, peftcls.ExtractiveQA):
            raise ValueError(f"--start {options.start} does not hold an ExtractiveQA.")
        return model, task, tokenizer
    if options.replay:
        raise ValueError(f"--replay {options.replay} needs --start; without it, use --train.")
    task = peftcls.ExtractiveQA(max_length=options.max_length, stride=96).learn(rows)
    model, tokenizer = peftcls.load_base(
        options.model, task, quantize=options.quantize, seed=options.seed
    )
    layers = adapter_layers(options)
    model = peftcls.attach_lora(
        model, task, rank=options.rank, targets="all-linear", layers=layers, seed=options.seed
    )
    return model, task, tokenizer


if __name__ == "__main__":
    run_recipe(main)
