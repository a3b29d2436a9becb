"""Pretrain the small base model that ships with peftcls (`--model demo`).

    python recipes/pretrain_demo_base.py --text FOLDER --out peftcls/demo/base

FOLDER holds `*.txt.gz` files with one paragraph, abstract or title a line. About an hour on two CPU cores. The rate rises,
holds, and falls to zero over the last 40 % of the steps; in these, long lines are followed by their own keywords.
`--start 1500` goes on from the weights in the output folder, as they were after 1500 steps.
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from peftcls.demo.corpus import add_keywords, pack, read_lines, train_tokenizer

DEFAULTS = {
    "steps": 2500,
    "start": 0,
    "batch": 16,
    "micro": 4,
    "length": 512,
    "vocabulary": 8192,
    "seed": 0,
    "muon": 0.01,
    "adam": 0.006,
}
RISE_STEPS, FALL_SHARE, SAVE_EVERY = 50, 0.4, 300


def next_token_loss(model: LlamaForCausalLM, rows: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(rows[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    for name, value in DEFAULTS.items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    a = parser.parse_args()
    torch.manual_seed(a.seed)
    lines, held_out = read_lines(a.text)
    tokenizer = train_tokenizer(lines, a.vocabulary)
    unseen = pack(held_out, tokenizer, a.length)
    config = LlamaConfig(
        vocab_size=a.vocabulary,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=6,
        num_attention_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM._from_config(config, attn_implementation="eager", dtype=torch.float32)
    if a.start:
        model.load_state_dict(
            LlamaForCausalLM.from_pretrained(a.out, dtype=torch.float32).state_dict()
        )
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim < 2 or "embed" in n]
    optimizers = [
        torch.optim.Muon(matrices, lr=a.muon, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=a.adam, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    loss_of, fall = torch.compile(next_token_loss, dynamic=False), round(a.steps * (1 - FALL_SHARE))
    marked, epoch_rows, started = False, [], time.time()
    for step in range(a.start, a.steps):
        factor = min(1.0, (step - a.start + 1) / RISE_STEPS, (a.steps - step) / (a.steps - fall))
        if step >= fall and not marked:
            lines, marked, epoch_rows = add_keywords(lines), True, []
        if len(epoch_rows) < a.batch:  # a new epoch: lines in a new order, cut at new places
            order = torch.randperm(
                len(lines), generator=torch.Generator().manual_seed(a.seed + step)
            ).tolist()
            epoch_rows = list(pack([lines[i] for i in order], tokenizer, a.length))
        batch, epoch_rows, total = torch.stack(epoch_rows[: a.batch]), epoch_rows[a.batch :], 0.0
        for rows in batch.split(a.micro):
            loss = loss_of(model, rows) * len(rows) / a.batch
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, peak in zip(optimizers, (a.muon, a.adam), strict=True):
            optimizer.param_groups[0]["lr"] = peak * factor
            optimizer.step()
            optimizer.zero_grad()
        print(
            f"step {step + 1}/{a.steps}  loss {total:.3f}  {(time.time() - started) / 60:.1f} minutes",
            flush=True,
        )
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == a.steps:
            with torch.no_grad():
                perplexity = math.exp(
                    sum(next_token_loss(model, rows).item() * len(rows) for rows in unseen.split(8))
                    / len(unseen)
                )
            weights = {"state_dict": model.state_dict(), "dtype": torch.bfloat16}
            LlamaForCausalLM.from_pretrained(None, config=config, **weights).save_pretrained(a.out)
            tokenizer.save_pretrained(a.out)
            facts = {
                "steps": step + 1,
                "tokens": (step + 1) * a.batch * a.length,
                "held_out_perplexity": round(perplexity, 1),
            }
            (a.out / "pretraining.json").write_text(json.dumps(facts, indent=1) + "\n")
            print(facts, flush=True)
