"""Pretrain the small base model that ships with peftcls (`--model demo`).

    python recipes/pretrain_demo_base.py --text FOLDER --out peftcls/demo/base --steps 2700

FOLDER holds `*.txt.gz` files with one paragraph, abstract or title a line. About an hour on two CPU cores.
"""

import argparse
import gzip
import json
import math
import time
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

DEFAULTS = {"steps": 2700, "batch": 16, "micro": 4, "length": 512, "vocabulary": 8192, "seed": 0, "muon": 0.01, "adam": 0.006}
EOS, PAD = "<|endoftext|>", "<|pad|>"
WORDS = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # numbers in pairs


def train_tokenizer(lines: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(WORDS), "isolated"),
                                                 pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    bpe.decoder, bpe.post_processor = decoders.ByteLevel(), processors.ByteLevel(trim_offsets=False)
    bpe.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=[EOS, PAD], show_progress=False,
                                                       initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=EOS, pad_token=PAD, model_max_length=512)


def pack(lines: list[str], tokenizer: PreTrainedTokenizerFast, length: int) -> torch.Tensor:
    """All lines behind one another, each ended by EOS, cut into rows of `length + 1` tokens."""
    ids = [i for line in tokenizer(lines)["input_ids"] for i in [*line, tokenizer.eos_token_id]]
    return torch.tensor(ids[: len(ids) // (length + 1) * (length + 1)]).view(-1, length + 1)


def next_token_loss(model: LlamaForCausalLM, rows: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(rows[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    for name, value in DEFAULTS.items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    a = parser.parse_args()
    torch.manual_seed(a.seed)
    texts = [gzip.decompress(file.read_bytes()).decode() for file in sorted(a.text.glob("*.txt.gz"))]
    lines = [line.strip() for text in texts for line in text.split("\n") if line.strip()]
    held_out, lines = lines[::100], [line for i, line in enumerate(lines) if i % 100]
    tokenizer = train_tokenizer(lines, a.vocabulary)
    unseen = pack(held_out, tokenizer, a.length)
    config = LlamaConfig(vocab_size=a.vocabulary, hidden_size=256, intermediate_size=688, num_hidden_layers=6, num_attention_heads=4,
                         max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=None,
                         eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model = LlamaForCausalLM._from_config(config, attn_implementation="eager", dtype=torch.float32)
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim < 2 or "embed" in n]
    optimizers = [torch.optim.Muon(matrices, lr=a.muon, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
                  torch.optim.AdamW(others, lr=a.adam, betas=(0.9, 0.95), weight_decay=0.0)]
    loss_of = torch.compile(next_token_loss, dynamic=False)
    peaks, start, spent, epoch_rows = [a.muon, a.adam], time.time(), 0, []
    for step in range(a.steps):
        factor = min(1.0, (step + 1) / 50, (a.steps - step) / (0.4 * a.steps))  # warm up, hold, decay over the last 40 %
        if len(epoch_rows) < a.batch:  # a new epoch: lines in a new order, cut at new places
            order = torch.randperm(len(lines), generator=torch.Generator().manual_seed(a.seed + step)).tolist()
            epoch_rows = list(pack([lines[i] for i in order], tokenizer, a.length))
        batch, epoch_rows, total = torch.stack(epoch_rows[: a.batch]), epoch_rows[a.batch:], 0.0
        for rows in batch.split(a.micro):
            loss = loss_of(model, rows) * len(rows) / a.batch
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * factor
            optimizer.step()
            optimizer.zero_grad()
        spent += batch[:, 1:].numel()
        print(f"step {step + 1}/{a.steps}  loss {total:.3f}  {spent / (time.time() - start):.0f} tokens/s", flush=True)
        if (step + 1) % 300 == 0 or step + 1 == a.steps:
            with torch.no_grad():
                model.eval()
                nll = sum(next_token_loss(model, rows).item() * len(rows) for rows in unseen.split(8)) / len(unseen)
                model.train()
            print(f"held-out perplexity {math.exp(nll):.1f}", flush=True)
            weights = {"state_dict": model.state_dict(), "dtype": torch.bfloat16}
            LlamaForCausalLM.from_pretrained(None, config=config, **weights).save_pretrained(a.out)
            tokenizer.save_pretrained(a.out)
            facts = {"step": step + 1, "tokens": spent, "held_out_perplexity": math.exp(nll), "minutes": (time.time() - start) / 60}
            (a.out / "pretraining.json").write_text(json.dumps(facts, indent=1) + "\n")
