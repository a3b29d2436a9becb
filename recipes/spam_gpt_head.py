r"""Turn a GPT into a spam classifier: a head on a decoder's last token, and LoRA in its attention.

    accelerate launch recipes/spam_gpt_head.py
    accelerate launch recipes/spam_gpt_head.py \
        --train train.csv --valid validation.csv --test test.csv --model openai-community/gpt2
    accelerate launch recipes/spam_gpt_head.py \
        --part last_block --predict unlabelled.csv --predictions answers.csv

The files need the columns text and label, in upper or lower case. An encoder works as well.
"""

from peftcls import (
    Classification,
    Instruction,
    Trainer,
    attach_lora,
    load_base,
    train_only,
)
from peftcls.recipe import (
    adapter_layers,
    ask_untrained,
    check_first,
    find_columns,
    finish_recipe,
    only_dry_run,
    read_tables,
    recipe_options,
    run_recipe,
    train_config,
)

QUESTION = "Message: {input}\nIs this message spam or ham? It is "


def main() -> None:
    options = recipe_options(
        __doc__,
        data="messages",
        out="runs/spam_gpt_head",
        max_length=256,
        part=["lora", "head", "last_block", "last_two_blocks", "all"],
    )
    train, valid, test = read_tables(options)

    text, label = find_columns(train, "text", "label")
    task = Classification(text=text, label=label, max_length=options.max_length).learn(train)
    check_first(task, options, test)
    model, tokenizer = load_base(options.model, task, quantize=options.quantize, seed=options.seed)
    if options.part == "lora":
        model = attach_lora(
            model, task, rank=options.rank, layers=adapter_layers(options), seed=options.seed
        )
    else:
        model = train_only(model, task, options.part)

    config = train_config(options, task, train)
    with Trainer(model, task, tokenizer, config) as trainer:
        if only_dry_run(trainer, options, train):
            return
        trainer.fit(train, valid, resume=options.resume)
        prompted = Instruction(
            template=QUESTION, input=text, output=label, labels=task.labels, max_length=384
        )
        zero_shot = ask_untrained(trainer, options.model, prompted, test)
        others = {"the same model, untrained, asked by prompt": zero_shot}
        finish_recipe(trainer, options, train, test, others)


if __name__ == "__main__":
    run_recipe(main)
