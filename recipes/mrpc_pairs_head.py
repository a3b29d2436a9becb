r"""Judge whether two sentences mean the same (1) or not (0): a head on the pair, with LoRA.

    accelerate launch recipes/mrpc_pairs_head.py
    accelerate launch recipes/mrpc_pairs_head.py \
        --train mrpc/train.csv --valid mrpc/validation.csv --model FacebookAI/roberta-base
    accelerate launch recipes/mrpc_pairs_head.py \
        --predict unlabelled.csv --predictions answers.csv

The files need the columns sentence1, sentence2 and label. The model is an encoder or a decoder. An
encoder reads the two sentences as a pair, with token types where it has them. The sample pairs are
few, and the model that ships with peftcls is too small for the task.
"""

from peftcls import (
    Classification,
    Instruction,
    Trainer,
    attach_lora,
    load_base,
)
from peftcls.baselines import pair_similarity
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

PAIR = ("sentence1", "sentence2")
QUESTION = (
    "First: {sentence1}\nSecond: {input}\n"
    "Do the two sentences say the same? Answer 1 for yes and 0 for no: "
)


def main() -> None:
    options = recipe_options(__doc__, data="pairs", out="runs/mrpc_pairs_head", max_length=160)
    train, valid, test = read_tables(options)

    task = Classification(text=PAIR, label="label", max_length=options.max_length).learn(train)
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
            template=QUESTION, input="sentence2", output="label", labels=task.labels, max_length=256
        )
        zero_shot = ask_untrained(trainer, options.model, prompted, test)
        others = {"the same model, untrained, asked by prompt": zero_shot}
        if test is not None:
            others["logistic regression on shared words"] = pair_similarity(task, PAIR, train, test)
        finish_recipe(trainer, options, train, test, others)


if __name__ == "__main__":
    run_recipe(main)
