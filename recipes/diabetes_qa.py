"""Find the answers to patients' questions in a clinic's document: extractive question answering with LoRA.

    accelerate launch recipes/diabetes_qa.py
    accelerate launch recipes/diabetes_qa.py --train your.json --valid held_out.json --model FacebookAI/roberta-base
    python recipes/diabetes_qa.py --out runs/diabetes_qa --ask "How often should my feet be checked?"
    accelerate launch recipes/diabetes_qa.py --train new_pages.json --start runs/diabetes_qa --replay your.json --out runs/next

The files are in the SQuAD form (1.1 or 2.0), as annotation tools export it, or tables with the columns question, context
and answers. `--ask` answers from every page of --train with the adapter in --out and trains nothing. `--start` learns on
from a saved folder, with a share of the rows of `--replay` so that the old pages are not forgotten.
"""

from peftcls import (
    ExtractiveQA,
    TrainConfig,
    Trainer,
    attach_lora,
    learn_on,
    load_base,
    load_predictor,
    read_rows,
    side_by_side,
    with_replay,
)
from peftcls.recipe import check_first, finish_recipe, only_rehearse, recipe_options, run_recipe

PAGES_SHOWN, AROUND = 3, 60  # pages, and characters on both sides of an answer


def main() -> None:
    options = recipe_options(
        __doc__,
        data="diabetes",
        kind="json",
        out="runs/diabetes_qa",
        epochs=12,
        learning_rate=2e-3,
        ask="a question, answered from the pages of --train by the adapter in --out; nothing is trained",
        start="a saved folder to learn on from",
        replay="rows that --start has learnt, to keep a share of them",
    )
    train, valid, test = (
        None if file is None else read_rows(file)
        for file in (options.train, options.valid, options.test)
    )
    if options.ask is not None:
        if not options.ask.strip():
            raise ValueError(f"--ask {options.ask!r}: expected a question.")
        pages = list(dict.fromkeys(train["context"]))
        predictor = load_predictor(options.out)
        if not isinstance(predictor.task, ExtractiveQA):
            raise ValueError(
                f"{options.out} holds a {type(predictor.task).__name__}, expected an ExtractiveQA to ask."
            )
        answers = predictor.predict([(options.ask, page) for page in pages])
        found = sorted(
            ((a, page) for a, page in zip(answers, pages, strict=True) if a.text),
            key=lambda pair: -pair[0].probability,
        )
        for answer, page in found[:PAGES_SHOWN]:
            before, after = (
                page[max(answer.start - AROUND, 0) : answer.start],
                page[answer.end : answer.end + AROUND],
            )
            print(
                f"{answer.probability:.2f}  {answer.text}\n      ...{before}[{answer.text}]{after}..."
            )
        print("" if found else "no page answers this question")
        return

    if options.replay and options.start is None:
        raise ValueError(
            f"--replay {options.replay}: expected --start, the folder that has learnt these rows; without one, all rows "
            "belong into --train."
        )
    old = read_rows(options.replay) if options.replay else None
    learnt = train if old is None else with_replay(train, old, seed=options.seed)
    if options.start is not None:
        model, task, tokenizer = learn_on(options.start, learnt, quantize=options.quantize)
        if not isinstance(task, ExtractiveQA):
            raise ValueError(
                f"--start {options.start} holds a {type(task).__name__}, expected an ExtractiveQA."
            )
    else:
        task = ExtractiveQA(max_length=320, stride=96).learn(train)
        model, tokenizer = load_base(
            options.model, task, quantize=options.quantize, seed=options.seed
        )
        model = attach_lora(
            model, task, rank=16, alpha=32, dropout=0.05, targets="all-linear", seed=options.seed
        )
    check_first(task, options, test)

    config = TrainConfig(
        options.out,
        epochs=options.epochs,
        batch_size=16,
        learning_rate=options.learning_rate,
        seed=options.seed,
    )
    with Trainer(model, task, tokenizer, config) as trainer:
        if only_rehearse(trainer, options, train):
            return
        tables = {"old rows": old, "new rows": train, "test rows": test}
        before = (
            {name: trainer.evaluate(rows) for name, rows in tables.items() if rows}
            if options.start is not None
            else {}
        )
        trainer.fit(learnt, valid, resume=options.resume)
        if valid and task.unanswerable and any(task.answerable(valid)):
            trainer.calibrate(valid)
        if options.start is not None:
            print(
                side_by_side(
                    before, {name: trainer.evaluate(rows) for name, rows in tables.items() if rows}
                )
            )
        finish_recipe(trainer, options, train, test, {})


if __name__ == "__main__":
    run_recipe(main)
