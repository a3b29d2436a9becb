"""Pretrain the small base model that ships with peftcls (`--model demo`).

    python recipes/pretrain_demo_base.py --text FOLDER --out peftcls/demo/base

FOLDER holds `*.txt.gz` files with one paragraph, abstract or title a line. About an hour on two CPU
cores. The rate rises, holds, and falls to zero over the last 40 % of the steps; in these, long
documents are followed by their own keywords. `--start 1500` continues from the weights in the
output folder, as they were after 1500 steps.
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from peftcls.demo import corpus

DEFAULTS = {"steps": 2500, "start": 0, "batch": 16, "micro": 4, "length": 512, "vocabulary": 8192}
DEFAULTS |= {"seed": 0, "muon": 0.01, "adam": 0.006}
WARMUP_STEPS = 50
DECAY_SHARE = 0.4
SAVE_EVERY = 300


def main(options) -> None:
    torch.manual_seed(options.seed)
    documents, held_out = corpus.read_documents(options.text)
    tokenizer = corpus.train_tokenizer(documents, options.vocabulary)
    unseen = corpus.pack(held_out, tokenizer, options.length)
    model = corpus.untrained_model(tokenizer, options.vocabulary)
    if options.start:
        saved = LlamaForCausalLM.from_pretrained(options.out, dtype=torch.float32)
        model.load_state_dict(saved.state_dict())
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim < 2 or "embed" in n]
    muon = {"lr": options.muon, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
    adam = {"lr": options.adam, "weight_decay": 0.0, "betas": (0.9, 0.95)}
    optimizers = [torch.optim.Muon(matrices, **muon), torch.optim.AdamW(others, **adam)]

    compiled_loss = torch.compile(next_token_loss, dynamic=False)
    decay_start = round(options.steps * (1 - DECAY_SHARE))
    batches = make_batches(documents, tokenizer, decay_start, options)
    started = time.time()
    for step, batch in enumerate(batches, options.start):
        total = 0.0
        for rows in batch.split(options.micro):
            loss = compiled_loss(model, rows) * len(rows) / options.batch
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        warmup = (step - options.start + 1) / WARMUP_STEPS
        decay = (options.steps - step) / (options.steps - decay_start)
        for optimizer, peak in zip(optimizers, (options.muon, options.adam), strict=True):
            optimizer.param_groups[0]["lr"] = peak * min(1.0, warmup, decay)
            optimizer.step()
            optimizer.zero_grad()
        minutes = (time.time() - started) / 60
        print(
            f"step {step + 1}/{options.steps}  loss {total:.3f}  {minutes:.1f} minutes", flush=True
        )
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == options.steps:
            save(model, tokenizer, unseen, step + 1, options)


def make_batches(documents, tokenizer, decay_start: int, options):
    """The batch of every step; each epoch has a new order of documents, cut at new positions."""
    sequences = []
    for step in range(options.start, options.steps):
        if step == max(decay_start, options.start):
            documents = corpus.add_keywords(documents)
            sequences = []
        if len(sequences) < options.batch:
            shuffled = corpus.shuffle(documents, seed=options.seed + step)
            sequences = list(corpus.pack(shuffled, tokenizer, options.length))
        yield torch.stack(sequences[: options.batch])
        sequences = sequences[options.batch :]


def next_token_loss(model: LlamaForCausalLM, rows: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(rows[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten())


@torch.no_grad()
def save(model, tokenizer, unseen: torch.Tensor, steps: int, options) -> None:
    """Save in bfloat16, with the perplexity on held-out documents."""
    losses = [next_token_loss(model, rows).item() * len(rows) for rows in unseen.split(8)]
    perplexity = math.exp(sum(losses) / len(unseen))
    weights = {"state_dict": model.state_dict(), "dtype": torch.bfloat16}
    narrow = LlamaForCausalLM.from_pretrained(None, config=model.config, **weights)
    narrow.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    tokens = steps * options.batch * options.length
    facts = {"steps": steps, "tokens": tokens, "held_out_perplexity": round(perplexity, 1)}
    (options.out / "pretraining.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(facts, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    for name, value in DEFAULTS.items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    main(parser.parse_args())
