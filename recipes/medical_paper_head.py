r"""Judge whether a paper is medical (1) or not (0): a classification head, with LoRA.

    accelerate launch recipes/medical_paper_head.py
    accelerate launch recipes/medical_paper_head.py \
        --train papers.csv --valid held_out.csv --model FacebookAI/roberta-base
    accelerate launch recipes/medical_paper_head.py \
        --loss bce --predict unlabelled.csv --predictions submission.csv --submission

The files need the columns title, abstract and label; the head reads title and abstract as a pair.
The model is an encoder or a decoder.
"""

from peftcls import (
    Classification,
    Instruction,
    Trainer,
    attach_lora,
    load_base,
)
from peftcls.recipe import (
    adapter_layers,
    ask_untrained,
    check_first,
    finish_recipe,
    only_dry_run,
    read_tables,
    recipe_options,
    run_recipe,
    train_config,
)

QUESTION = (
    "Is this a medical paper? Answer 1 for yes and 0 for no.\n"
    "Title: {title}\nAbstract: {input}\nAnswer: "
)


def main() -> None:
    options = recipe_options(
        __doc__,
        data="papers",
        out="runs/medical_paper_head",
        max_length=288,
        loss=["cross_entropy", "bce"],
    )
    train, valid, test = read_tables(options)

    task = Classification(
        text=("title", "abstract"), label="label", loss=options.loss, max_length=options.max_length
    ).learn(train)
    check_first(task, options, test)
    model, tokenizer = load_base(options.model, task, quantize=options.quantize, seed=options.seed)
    model = attach_lora(
        model, task, rank=options.rank, layers=adapter_layers(options), seed=options.seed
    )

    config = train_config(options, task, train)
    with Trainer(model, task, tokenizer, config) as trainer:
        if only_dry_run(trainer, options, train):
            return
        trainer.fit(train, valid, resume=options.resume)
        prompted = Instruction(
            template=QUESTION, input="abstract", output="label", labels=task.labels, max_length=288
        )
        zero_shot = ask_untrained(trainer, options.model, prompted, test)
        others = {"the same model, untrained, asked by prompt": zero_shot}
        finish_recipe(trainer, options, train, test, others)


if __name__ == "__main__":
    run_recipe(main)
