"""A training script as users have them: a tiny model on rows that count upwards."""

import torch
from transformers import HfArgumentParser, LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed

(args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()
set_seed(args.seed)
rows = (torch.arange(8) + torch.randint(0, 8, (32, 1))) % 16
data = [{"input_ids": row, "labels": row} for row in rows]
config = LlamaConfig(vocab_size=16, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2)
trainer = Trainer(LlamaForCausalLM(config), args, train_dataset=data[:16], eval_dataset=data[16:24])
trainer.train()
trainer.save_model()
trainer.predict(data[24:])
