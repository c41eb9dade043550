"""Text networks of transformers: encoders, decoders with masks, padding and caches, both."""

from __future__ import annotations

import transformers as hf
from zoo_base import TEXT, Architecture, Inputs, ids, padding, text

NO_DROP = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def bert():
    return hf.BertForSequenceClassification(hf.BertConfig(**TEXT, **NO_DROP, num_labels=3))


def roberta():
    return hf.RobertaForTokenClassification(hf.RobertaConfig(**TEXT, **NO_DROP, num_labels=3))


def distilbert():
    config = hf.DistilBertConfig(
        vocab_size=40,
        dim=16,
        n_layers=2,
        n_heads=2,
        hidden_dim=24,
        max_position_embeddings=32,
        dropout=0.0,
        attention_dropout=0.0,
        seq_classif_dropout=0.0,
        num_labels=3,
    )
    return hf.DistilBertForSequenceClassification(config)


def albert():
    config = hf.AlbertConfig(
        **TEXT, **NO_DROP, embedding_size=8, classifier_dropout_prob=0.0, num_labels=3
    )
    return hf.AlbertForSequenceClassification(config)


def electra():
    config = hf.ElectraConfig(**TEXT, **NO_DROP, embedding_size=8, num_labels=3)
    return hf.ElectraForTokenClassification(config)


def deberta_v2():
    config = hf.DebertaV2Config(
        **TEXT,
        **NO_DROP,
        pooler_hidden_size=16,
        relative_attention=True,
        position_buckets=4,
        pos_att_type=["p2c", "c2p"],
        norm_rel_ebd="layer_norm",
        num_labels=3,
    )
    return hf.DebertaV2ForSequenceClassification(config)


def modernbert():
    config = hf.ModernBertConfig(
        **TEXT,
        cls_token_id=1,
        sep_token_id=2,
        global_attn_every_n_layers=2,
        local_attention=4,
        num_labels=3,
    )
    return hf.ModernBertForSequenceClassification(config)


def mpnet():
    return hf.MPNetForMultipleChoice(hf.MPNetConfig(**TEXT, **NO_DROP))


GPT2 = {
    "vocab_size": 40,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}


def gpt2():
    return hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2))


def gpt2_sequence():
    return hf.GPT2ForSequenceClassification(hf.GPT2Config(**GPT2, num_labels=3))


def gpt_neox():
    config = hf.GPTNeoXConfig(**TEXT, hidden_dropout=0.0, attention_dropout=0.0)
    return hf.GPTNeoXForCausalLM(config)


def opt():
    kwargs = {**TEXT, "ffn_dim": 24, "dropout": 0.0, "word_embed_proj_dim": 16, "layerdrop": 0.0}
    kwargs.pop("intermediate_size")
    return hf.OPTForCausalLM(hf.OPTConfig(**kwargs))


LLAMA = {**TEXT, "num_key_value_heads": 1, "head_dim": 8}


def llama():
    return hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA))


def llama_sequence():
    return hf.LlamaForSequenceClassification(hf.LlamaConfig(**LLAMA, num_labels=3))


def qwen2():
    return hf.Qwen2ForCausalLM(hf.Qwen2Config(**{**LLAMA, "tie_word_embeddings": True}))


def qwen3():
    return hf.Qwen3ForTokenClassification(
        hf.Qwen3Config(**LLAMA, num_labels=3, classifier_dropout=0.0)
    )


def gemma():
    return hf.GemmaForCausalLM(hf.GemmaConfig(**LLAMA))


def mistral():
    return hf.MistralForCausalLM(hf.MistralConfig(**LLAMA, sliding_window=4))


def phi():
    config = hf.PhiConfig(**TEXT, partial_rotary_factor=0.5, resid_pdrop=0.0, embd_pdrop=0.0)
    return hf.PhiForCausalLM(config)


def falcon():
    kwargs = {**TEXT, "ffn_hidden_size": 24, "hidden_dropout": 0.0, "attention_dropout": 0.0}
    kwargs.pop("intermediate_size")
    return hf.FalconForCausalLM(hf.FalconConfig(**kwargs))


def bloom():
    config = hf.BloomConfig(
        vocab_size=40,
        hidden_size=16,
        n_layer=2,
        n_head=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        hidden_dropout=0.0,
        attention_dropout=0.0,
    )
    return hf.BloomForCausalLM(config)


def mixtral():
    config = hf.MixtralConfig(**LLAMA, num_local_experts=4, num_experts_per_tok=2)
    return hf.MixtralForCausalLM(config)


def qwen2_moe():
    config = hf.Qwen2MoeConfig(
        **TEXT,
        num_key_value_heads=1,
        moe_intermediate_size=12,
        shared_expert_intermediate_size=12,
        num_experts=4,
        num_experts_per_tok=2,
        decoder_sparse_step=1,
    )
    return hf.Qwen2MoeForCausalLM(config)


def mamba():
    config = hf.MambaConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        state_size=4,
        time_step_rank=4,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return hf.MambaForCausalLM(config)


# Encoder and decoder


def t5():
    config = hf.T5Config(
        vocab_size=40,
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_layers=2,
        num_heads=2,
        dropout_rate=0.0,
        pad_token_id=0,
        decoder_start_token_id=0,
    )
    return hf.T5ForConditionalGeneration(config)


BART = {
    "vocab_size": 40,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 32,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "encoder_layerdrop": 0.0,
    "decoder_layerdrop": 0.0,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}


def bart():
    return hf.BartForConditionalGeneration(hf.BartConfig(**BART))


def mbart():
    return hf.MBartForConditionalGeneration(hf.MBartConfig(**BART))


def marian():
    return hf.MarianMTModel(hf.MarianConfig(**BART))


def translated(batch: int) -> Inputs:
    """A padded source and a shorter target."""
    return (), {
        "input_ids": ids(batch),
        "attention_mask": padding(batch, "right"),
        "decoder_input_ids": ids(batch, 4),
    }


def choices(batch: int) -> Inputs:
    """Two choices for every example: (batch, choices, length)."""
    return (), {"input_ids": ids(batch * 2).unflatten(0, (batch, 2))}


ZOO = {
    "bert": Architecture(bert, text(output_hidden_states=True)),
    "roberta": Architecture(roberta, text()),
    "distilbert": Architecture(distilbert, text()),
    "albert": Architecture(albert, text()),
    "electra": Architecture(electra, text(None)),
    "deberta-v2": Architecture(deberta_v2, text()),
    "modernbert": Architecture(modernbert, text()),
    "mpnet-choices": Architecture(mpnet, choices),
    "gpt2": Architecture(gpt2, text("left")),
    "gpt2-uncached": Architecture(gpt2, text(None, use_cache=False)),
    "gpt2-sequence": Architecture(gpt2_sequence, text("right", use_cache=False)),
    "gpt-neox": Architecture(gpt_neox, text("left")),
    "opt": Architecture(opt, text("left")),
    "llama": Architecture(llama, text("left")),
    "llama-uncached": Architecture(llama, text(None, use_cache=False, output_hidden_states=True)),
    "llama-sequence": Architecture(llama_sequence, text("left", use_cache=False)),
    "qwen2": Architecture(qwen2, text("left")),
    "qwen3-tokens": Architecture(qwen3, text("right", use_cache=False)),
    "gemma": Architecture(gemma, text("left")),
    "mistral": Architecture(mistral, text("left")),
    "phi": Architecture(phi, text(None)),
    "falcon": Architecture(falcon, text("left")),
    "bloom": Architecture(bloom, text("left")),
    "mixtral": Architecture(mixtral, text("left", output_router_logits=True)),
    "qwen2-moe": Architecture(qwen2_moe, text(None, output_router_logits=True)),
    "mamba": Architecture(mamba, text(None, use_cache=False)),
    "mamba-cached": Architecture(mamba, text(None)),
    "t5": Architecture(t5, translated),
    "bart": Architecture(bart, translated),
    "mbart": Architecture(mbart, translated),
    "marian": Architecture(marian, translated),
}
