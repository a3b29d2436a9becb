"""A tiny configuration of every architecture that the tests go through."""

from typing import Any

import transformers as t
from conftest import SIZES

CLS, SEP = 2, 3


PIECES = {"vocab_size": 400, "pad_token_id": 0}


MARKS = {"bos_token_id": CLS, "eos_token_id": SEP}


Table = dict[str, tuple[Any, Any]]


ENCODERS: Table = {
    "bert": (t.BertModel, t.BertConfig(**PIECES, **SIZES)),
    "bert saved as a masked LM": (t.BertForMaskedLM, t.BertConfig(**PIECES, **SIZES)),
    "roberta": (t.RobertaModel, t.RobertaConfig(**PIECES, **SIZES)),
    "xlm-roberta": (t.XLMRobertaModel, t.XLMRobertaConfig(**PIECES, **SIZES)),
    "distilbert": (
        t.DistilBertModel,
        t.DistilBertConfig(
            **PIECES, dim=128, n_layers=2, n_heads=4, hidden_dim=256, max_position_embeddings=256
        ),
    ),
    "albert": (t.AlbertModel, t.AlbertConfig(**PIECES, **SIZES, embedding_size=64)),
    "electra": (t.ElectraModel, t.ElectraConfig(**PIECES, **SIZES, embedding_size=64)),
    "deberta": (t.DebertaModel, t.DebertaConfig(**PIECES, **SIZES)),
    "deberta-v2": (
        t.DebertaV2Model,
        t.DebertaV2Config(
            **PIECES,
            **SIZES,
            relative_attention=True,
            position_buckets=16,
            pos_att_type=["p2c", "c2p"],
            share_att_key=True,
        ),
    ),
    "mpnet": (t.MPNetModel, t.MPNetConfig(**PIECES, **SIZES)),
    "big-bird": (
        t.BigBirdModel,
        t.BigBirdConfig(**PIECES, **SIZES, attention_type="original_full"),
    ),
    "modernbert": (
        t.ModernBertModel,
        t.ModernBertConfig(**PIECES, **SIZES, **MARKS, cls_token_id=CLS, sep_token_id=SEP),
    ),
    "bart": (
        t.BartModel,
        t.BartConfig(
            **PIECES,
            d_model=128,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=256,
            decoder_ffn_dim=256,
            bos_token_id=CLS,
            eos_token_id=SEP,
            decoder_start_token_id=SEP,
            max_position_embeddings=256,
        ),
    ),
    "t5": (
        t.T5Model,
        t.T5Config(
            **PIECES,
            d_model=128,
            d_kv=32,
            num_layers=2,
            num_heads=4,
            d_ff=256,
            eos_token_id=SEP,
            decoder_start_token_id=0,
        ),
    ),
    "xlnet": (t.XLNetModel, t.XLNetConfig(**PIECES, d_model=128, n_layer=2, n_head=4, d_inner=256)),
    "longformer": (t.LongformerModel, t.LongformerConfig(**PIECES, **SIZES, attention_window=16)),
    "funnel": (
        t.FunnelModel,
        t.FunnelConfig(**PIECES, d_model=128, d_head=32, n_head=4, d_inner=256, block_sizes=[1, 1]),
    ),
}


BYTES = {"vocab_size": 500, "bos_token_id": None, "eos_token_id": 0}


GROUPED = {**BYTES, **SIZES, "num_key_value_heads": 2, "head_dim": 32}


DECODERS: Table = {
    "gpt2": (t.GPT2Model, t.GPT2Config(**BYTES, n_embd=128, n_layer=2, n_head=4, n_positions=256)),
    "gpt-neo": (
        t.GPTNeoModel,
        t.GPTNeoConfig(
            **BYTES,
            hidden_size=128,
            num_layers=2,
            num_heads=4,
            intermediate_size=256,
            attention_types=[[["global", "local"], 1]],
            max_position_embeddings=256,
        ),
    ),
    "gpt-neox": (t.GPTNeoXModel, t.GPTNeoXConfig(**BYTES, **SIZES)),
    "opt": (
        t.OPTModel,
        t.OPTConfig(
            **BYTES,
            hidden_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            ffn_dim=256,
            word_embed_proj_dim=128,
            max_position_embeddings=256,
        ),
    ),
    "bloom": (t.BloomModel, t.BloomConfig(**BYTES, hidden_size=128, n_layer=2, n_head=4)),
    "falcon": (
        t.FalconModel,
        t.FalconConfig(**BYTES, hidden_size=128, num_hidden_layers=2, num_attention_heads=4),
    ),
    "llama": (t.LlamaModel, t.LlamaConfig(**BYTES, **SIZES)),
    "llama saved as a causal LM": (t.LlamaForCausalLM, t.LlamaConfig(**BYTES, **SIZES)),
    "mistral": (t.MistralModel, t.MistralConfig(**GROUPED)),
    "mixtral": (t.MixtralModel, t.MixtralConfig(**GROUPED, num_local_experts=2)),
    "qwen2": (t.Qwen2Model, t.Qwen2Config(**GROUPED)),
    "qwen3": (t.Qwen3Model, t.Qwen3Config(**GROUPED)),
    "gemma": (t.GemmaModel, t.GemmaConfig(**GROUPED)),
    "gemma3": (t.Gemma3TextModel, t.Gemma3TextConfig(**GROUPED)),
    "phi": (t.PhiModel, t.PhiConfig(**BYTES, **SIZES)),
    "phi3": (t.Phi3Model, t.Phi3Config(**BYTES, **SIZES, pad_token_id=0)),
    "olmo2": (t.Olmo2Model, t.Olmo2Config(**BYTES, **SIZES)),
    "starcoder2": (t.Starcoder2Model, t.Starcoder2Config(**GROUPED)),
}


ARCHITECTURES = ENCODERS | DECODERS
