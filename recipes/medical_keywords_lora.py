r"""Write the keywords of a paper: LoRA instruction tuning on title and abstract.

    accelerate launch recipes/medical_keywords_lora.py
    accelerate launch recipes/medical_keywords_lora.py \
        --train papers.csv --valid held_out.csv --model Qwen/Qwen2.5-0.5B
    accelerate launch recipes/medical_keywords_lora.py \
        --predict unlabelled.csv --predictions submission.csv --submission

The files need the columns title, abstract and Keywords, the keywords with ';' between them.
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
    "List the keywords of this paper, separated by semicolons.\n"
    "Title: {title}\nAbstract: {input}\nKeywords: "
)


def main() -> None:
    options = recipe_options(
        __doc__, data="papers", out="runs/medical_keywords_lora", max_length=448
    )
    train, valid, test = read_tables(options)

    task = Instruction(
        template=TEMPLATE,
        input="abstract",
        output="Keywords",
        separator=";",
        max_length=options.max_length,
        max_new_tokens=96,
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
