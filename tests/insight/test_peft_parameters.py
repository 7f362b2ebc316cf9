"""Adapters of single parameters (peft's target_parameters) have layers whose forward pass never runs."""

from __future__ import annotations

import peft
import torch
from transformers import MixtralConfig, MixtralForCausalLM

from adafisher_hf import AdaFisherW, coverage


def adapted():
    torch.manual_seed(0)
    sizes = dict(hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2, vocab_size=17)
    model = MixtralForCausalLM(MixtralConfig(**sizes, num_key_value_heads=1, num_local_experts=2))
    config = peft.LoraConfig(
        r=2, target_modules=["q_proj"], target_parameters=["experts.gate_up_proj", "experts.down_proj"]
    )
    return peft.get_peft_model(model, config)


def test_coverage_says_what_happens_in_training():
    model = adapted()
    optimizer = AdaFisherW(model)
    ids = torch.arange(12).view(2, 6)
    model(input_ids=ids, labels=ids).loss.backward()
    told, told_by_optimizer = (
        {row.name: row.kind for row in rows} for rows in (coverage(model), optimizer.coverage_rows())
    )
    measured = {block.name: any(tap.sums is not None for tap in block.taps) for block in optimizer._statistics}
    assert {name: kind != "gradient" for name, kind in told.items()} == measured
    assert told == told_by_optimizer
    assert sum(measured.values()) == 2 and len(measured) == 6  # q_proj's A and B, and those of two parameters
