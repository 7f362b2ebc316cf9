"""docs/recipes.md: every recipe is complete, runs as it stands, and trains with AdaFisherW.

In a folder with small models under the names that it loads, and with the files that the page lists.
"""

from __future__ import annotations

import csv

import pytest
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from adafisher_hf import AdaFisherW
from tests.docs.test_code_blocks import RECIPES, ROOT, code_blocks

BLOCKS = [block for block in code_blocks(ROOT / "docs" / RECIPES) if block.language == "python"]
OPTIONAL = ("sentence_transformers", "lightning")
SENTENCES = [f"the {thing} is {state}" for thing in ("cat", "sea", "old house") for state in ("red", "warm", "mine")]
SIZES = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What a reader has: models by their names, and files."""
    root = tmp_path_factory.mktemp("reader")
    (root / "train.txt").write_text("\n".join(SENTENCES))
    write_csv(root / "reviews.csv", ["text", "label"], [[text, i % 2] for i, text in enumerate(SENTENCES)])
    write_csv(root / "pairs.csv", ["source", "target"], [[text, f"{text} again"] for text in SENTENCES])
    for i in range(8):
        picture = root / "photos" / ("cats" if i % 2 else "seas") / f"{i}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (30 * i, 0, 0)).save(picture)
    save_models(root)
    return root


def write_csv(file, header, rows):
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])


def save_models(root):
    tokenizer = small_tokenizer()
    ids = dict(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id)
    t5 = T5Config(d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0, **ids)
    texts = {
        "HuggingFaceTB/SmolLM2-135M": LlamaForCausalLM(LlamaConfig(**SIZES, **ids)),
        "google-bert/bert-base-uncased": BertForMaskedLM(BertConfig(**SIZES, **ids)),
        "google-t5/t5-small": T5ForConditionalGeneration(t5),
        "sentence-transformers/all-MiniLM-L6-v2": BertModel(BertConfig(**SIZES, **ids)),
    }
    for name, model in texts.items():
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    sight = root / "google/vit-base-patch16-224-in21k"
    ViTForImageClassification(ViTConfig(image_size=16, patch_size=8, **SIZES)).save_pretrained(sight)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(sight)


def small_tokenizer():
    special = dict(pad_token="<pad>", eos_token="</s>", unk_token="<unk>", mask_token="<mask>", cls_token="<s>")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        SENTENCES, trainers.BpeTrainer(vocab_size=300, special_tokens=[*special.values()], initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=128, **special)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"line-{block.line}")
def test_recipe(block, folder, tmp_path, monkeypatch):
    import datasets

    for package in OPTIONAL:
        if package in block.code:
            pytest.importorskip(package, reason=f"{package} is not among the packages of the tests")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    made = []
    step = AdaFisherW.step
    monkeypatch.setattr(AdaFisherW, "step", lambda self, *args, **more: made.append(self) or step(self, *args, **more))
    names = {"__name__": "__main__"}
    exec(compile("\n" * block.line + block.code, RECIPES, "exec"), names)
    assert made, "no step was taken with AdaFisherW"
    assert all(len(state) for state in made[-1].state.values())


def test_there_is_a_recipe_for_every_task():
    headings = [line for line in (ROOT / "docs" / RECIPES).read_text().splitlines() if line.startswith("## ")]
    assert len(headings) == len(BLOCKS) == 10
