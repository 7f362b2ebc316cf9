"""A GPT-2 as small as the small Llama: Conv1D with q, k and v in one, LayerNorm, learned positions."""

from __future__ import annotations

from transformers import GPT2Config

HEAD = 32  # width of an attention head


def small_gpt2(vocabulary: int, hidden_size: int = 128, layers: int = 4, positions: int = 128) -> GPT2Config:
    return GPT2Config(
        vocab_size=vocabulary,
        n_embd=hidden_size,
        n_layer=layers,
        n_head=hidden_size // HEAD,
        n_positions=positions,
        bos_token_id=0,
        eos_token_id=0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
