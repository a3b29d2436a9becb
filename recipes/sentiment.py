r"""Tell positive, neutral and negative reviews apart: the simplest recipe, made to be copied.

    accelerate launch recipes/sentiment.py --model minilm
    accelerate launch recipes/sentiment.py \
        --train reviews.csv --valid held_out.csv --predict new.csv --predictions answers.csv

The files need the columns text and label. Any number of labels will do.
"""

from peftcls import Classification, Trainer, attach_lora, load_base
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


def main() -> None:
    options = recipe_options(__doc__, data="reviews", out="runs/sentiment", max_length=128)
    train, valid, test = read_tables(options)

    task = Classification(text="text", label="label", max_length=options.max_length).learn(train)
    check_first(task, options, test)
    model, tokenizer = load_base(options.model, task, quantize=options.quantize, seed=options.seed)
    model = attach_lora(
        model, task, rank=options.rank, layers=adapter_layers(options), seed=options.seed
    )

    with Trainer(model, task, tokenizer, train_config(options, task, train)) as trainer:
        if only_dry_run(trainer, options, train):
            return
        trainer.fit(train, valid, resume=options.resume)
        finish_recipe(trainer, options, train, test, {})


if __name__ == "__main__":
    run_recipe(main)
