"""Models, tasks and rows that the tests of the engine share."""

import torch
import transformers
from conftest import GPT2_SIZES, SIZES

from peftcls import (
    Instruction,
    attach_lora,
    load_base,
    train_only,
)

GROUPED = {**SIZES, "num_key_value_heads": 2}


DECODERS = {
    "llama": (transformers.LlamaForCausalLM, transformers.LlamaConfig(vocab_size=500, **GROUPED)),
    "gpt2": (
        transformers.GPT2LMHeadModel,
        transformers.GPT2Config(vocab_size=500, bos_token_id=0, eos_token_id=0, **GPT2_SIZES),
    ),
    "qwen3": (
        transformers.Qwen3ForCausalLM,
        transformers.Qwen3Config(vocab_size=500, head_dim=32, **GROUPED),
    ),
    "mistral, a window shorter than the text": (
        transformers.MistralForCausalLM,
        transformers.MistralConfig(vocab_size=500, sliding_window=8, **GROUPED),
    ),
    "gpt-neox": (
        transformers.GPTNeoXForCausalLM,
        transformers.GPTNeoXConfig(vocab_size=500, bos_token_id=0, eos_token_id=0, **SIZES),
    ),
    "opt": (
        transformers.OPTForCausalLM,
        transformers.OPTConfig(
            vocab_size=500,
            hidden_size=128,
            num_hidden_layers=2,
            ffn_dim=256,
            num_attention_heads=4,
            max_position_embeddings=256,
            word_embed_proj_dim=128,
        ),
    ),
}


LABELS = ("yes", "yes please", "no")


ASKED = Instruction(
    template="Somebody wrote a text, and a label belongs to it.\n{input}\nThe label: ",
    input="text",
    output="label",
    labels=("yes", "no"),
    max_length=200,
)


def gradients(model):
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    return found


def opened(base, task, how):
    model, tokenizer = load_base(base, task)
    return (
        train_only(model, task, how)
        if isinstance(how, str)
        else attach_lora(model, task, rank=4, layers=how)
    ), tokenizer


QUESTIONS = [
    {
        "question": "who recovered?",
        "context": "the patient was given a new drug and recovered",
        "answers": {"text": ["the patient"], "answer_start": [0]},
    },
    {
        "question": "what fell?",
        "context": "stock prices fell after the bank raised rates",
        "answers": {"text": ["stock prices"], "answer_start": [0]},
    },
]


ENCODERS = {
    "bert": (transformers.BertModel, transformers.BertConfig(vocab_size=400, **SIZES)),
    "roberta": (
        transformers.RobertaModel,
        transformers.RobertaConfig(vocab_size=400, pad_token_id=0, **SIZES),
    ),
    "distilbert": (
        transformers.DistilBertModel,
        transformers.DistilBertConfig(
            vocab_size=400, dim=128, n_layers=2, n_heads=4, hidden_dim=256
        ),
    ),
    "modernbert": (
        transformers.ModernBertModel,
        transformers.ModernBertConfig(
            vocab_size=400,
            pad_token_id=0,
            cls_token_id=2,
            sep_token_id=3,
            local_attention=8,
            **SIZES,
        ),
    ),
}
