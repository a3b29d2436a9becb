r"""Judge whether a paper is medical (1) or not (0): LoRA instruction tuning on title and abstract.

    accelerate launch recipes/medical_paper_lora.py
    accelerate launch recipes/medical_paper_lora.py \
        --train papers.csv --valid held_out.csv --model Qwen/Qwen2.5-0.5B
    accelerate launch recipes/medical_paper_lora.py \
        --predict unlabelled.csv --predictions submission.csv --submission

The files need the columns title, abstract and label.
"""

from peftcls import Instruction, Trainer, attach_lora, load_base
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

TEMPLATE = (
    "Title: {title}\nAbstract: {input}\n"
    "Question: Is this a paper about medicine or health? Answer 1 for yes and 0 for no.\nAnswer: "
)


def main() -> None:
    options = recipe_options(__doc__, data="papers", out="runs/medical_paper_lora", max_length=448)
    train, valid, test = read_tables(options)

    task = Instruction(
        template=TEMPLATE,
        input="abstract",
        output="label",
        labels=("0", "1"),
        max_length=options.max_length,
    )
    check_first(task, options, test)
    model, tokenizer = load_base(options.model, task, quantize=options.quantize, seed=options.seed)
    model = attach_lora(
        model, task, rank=options.rank, layers=adapter_layers(options), seed=options.seed
    )

    config = train_config(options, task, train)
    with Trainer(model, task, tokenizer, config) as trainer:
        if only_dry_run(trainer, options, train):
            return
        untrained = trainer.predict(test) if test else []
        trainer.fit(train, valid, resume=options.resume)
        finish_recipe(trainer, options, train, test, {"the same model, untrained": untrained})


if __name__ == "__main__":
    run_recipe(main)
