"""The model card: the Trainer's own, with what it should say about the optimizer, and nothing else changed."""

import difflib
import logging
import re
from pathlib import Path

import pytest
import yaml
from transformers import Trainer

import adafisher_hf
from adafisher_hf import AdaFisher, AdaFisherTrainer
from adafisher_hf.integrations.optimizers import CITATION
from tests.integrations.test_trainer import arguments, data
from tests.models import llama

ROOT = Path(__file__).parents[2]
SECTION = re.compile(r"\n<!-- adafisher_hf \w+ -->\n.*<!-- end of adafisher_hf -->\n", re.S)


def trained(folder, cls=AdaFisherTrainer, model=None, **settings):
    args = arguments(folder / "run", eval_strategy="steps", eval_steps=2, max_steps=2, **settings)
    trainer = cls(model or llama(), args, train_dataset=data(), eval_dataset=data(4))
    trainer.train()
    return trainer


def card_of(trainer, **options):
    trainer.create_model_card(**options)
    return card_file(trainer).read_text()


def card_file(trainer):
    return Path(trainer.args.output_dir) / "README.md"


def changes(before, after):
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0)
    return [line for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---")]


@pytest.fixture
def trainer(tmp_path):
    return trained(tmp_path)


def test_nothing_else_of_the_card_changes(tmp_path):
    options = {"language": "en", "license": "apache-2.0", "model_name": "mine"}
    plain, ours = (card_of(trained(tmp_path, cls), tags=["news"], **options) for cls in (Trainer, AdaFisherTrainer))
    resolved = (
        "beta=0.9,mode=calibrated,damping=0.1,beta2=0.95,gamma=none,update_interval=2,update_warmup=2,"
        "structure=diagonal,vocabulary_lr=none,nesterov=False,narrow_side=True,iteration=newton_schulz,"
        "iteration_steps=5,orthogonal_exclude=none,lora=factors,pair_damping=0.2,max_factor_dim=1024,basis_interval=10,"
        "second_moment=factors,token_stride=1,estimator=empirical,state_dtype=float32,gradient_release=False,"
        "rounding=kahan,kernel=auto"
    )
    assert changes(plain, SECTION.sub("", ours)) == [
        "+- adafisher",
        "-- optimizer: Use OptimizerNames.ADAFISHERW and the args are:",
        "-update_interval=2,update_warmup=2",
        "+- optimizer: Use adafisherw and the args are:",
        f"+{resolved}",
    ]
    section = SECTION.search(ours).group()
    assert resolved.replace(",", ", ") in section
    assert "learning_rate=0.01, weight_decay=0.0" in section
    assert (
        f"AdaFisherW ([paper](https://arxiv.org/abs/2405.16397)) of adafisher_hf {adafisher_hf.__version__}" in section
    )
    assert f"```bibtex\n{CITATION}```" in section
    assert ours.endswith(section)


def test_the_citation_is_that_of_the_documentation():
    assert f"```bibtex\n{CITATION}```" in (ROOT / "docs/citation.md").read_text()


def test_the_code_of_the_card_asks_for_the_same_optimizer(trainer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(card_of(trainer).split("```python\n")[1].split("```")[0], names)
    again = trained(tmp_path / "again", optim=names["args"].optim, optim_args=names["args"].optim_args)
    assert again.optimizer.optimizer.config == trainer.optimizer.optimizer.config
    assert names["args"].learning_rate == trainer.args.learning_rate


def test_the_second_card_is_the_first(trainer):
    card = card_of(trainer)
    assert card_of(trainer) == card
    args = trainer.args
    assert (args.optim, args.optim_args) == ("adafisherw", "update_interval=2,update_warmup=2")


def test_a_card_of_another_run_is_replaced(tmp_path):
    card_of(trained(tmp_path, optim_args="damping=0.5"))
    card = card_of(trained(tmp_path, optim_args="damping=0.25"))
    assert "damping=0.25" in card
    assert "damping=0.5" not in card
    assert card.count("<!-- adafisher_hf") == card.count("```bibtex") == card.count("- adafisher\n") == 1


@pytest.mark.parametrize(
    "edit",
    [
        lambda card: card.replace("More information needed", "It writes news.", 1),
        lambda card: card.replace("library_name: transformers", "library_name: transformers\nlicense: mit"),
        lambda card: card + "\nA line at the end.\n",
        lambda card: re.sub(r"<!-- This model card.*?-->", "", card, flags=re.S),
        lambda card: "---\nlicense: mit\n---\n\n# My own card\n",
        lambda card: "# My own card, without metadata\n",
        lambda card: "---\ntags: news\n---\n# One tag\n",
    ],
)
def test_an_edited_card_is_kept(trainer, tmp_path, caplog, edit):
    file = card_file(trainer)
    mine = edit(card_of(trainer))
    file.write_text(mine)
    another = trained(tmp_path, optim_args="damping=0.25")
    with caplog.at_level(logging.WARNING, "adafisher_hf"):
        card = card_of(another)
    assert "was edited: it is kept" in caplog.text
    assert "damping=0.25" in SECTION.search(card).group()
    assert card.count("<!-- adafisher_hf") == card.count("```bibtex") == 1
    assert "adafisher" in yaml.safe_load(card.split("---\n")[1])["tags"]

    def without_ours(text):
        body = SECTION.sub("", text)
        return [line for line in body.splitlines() if line and line not in ("---", "- adafisher", "tags:", "- news")]

    assert without_ours(card) == [line for line in without_ours(mine) if line != "tags: news"]
    assert card_of(another) == card


def test_tags_that_were_added_stay(trainer):
    file = card_file(trainer)
    file.write_text(card_of(trainer).replace("- adafisher\n", "- adafisher\n- news\n"))
    assert yaml.safe_load(card_of(trainer).split("---\n")[1])["tags"] == ["generated_from_trainer", "adafisher", "news"]


def test_broken_metadata_is_named(trainer):
    card_file(trainer).write_text("---\ntags: [unclosed\n---\n# Mine\n")
    with pytest.raises(ValueError, match="README.md: what stands between the two lines of --- is not valid YAML"):
        trainer.create_model_card()


def test_another_optimizer_has_the_trainers_own_card(tmp_path):
    cards = [
        card_of(trained(tmp_path / cls.__name__, cls, optim="adamw_torch", optim_args=None))
        for cls in (Trainer, AdaFisherTrainer)
    ]
    assert cards[0] == cards[1]


def test_an_optimizer_that_was_handed_over_is_named(tmp_path):
    model = llama()
    optimizer = AdaFisher(model.parameters(), model=model, lr=0.5, weight_decay=0.25, damping=0.75)
    args = arguments(tmp_path / "run", optim="adamw_torch", optim_args=None, max_steps=1)
    trainer = AdaFisherTrainer(model, args, train_dataset=data(), optimizers=(optimizer, None))
    trainer.train()
    card = card_of(trainer)
    assert "- optimizer: Use adafisher and the args are:\nbeta=0.9,mode=calibrated,damping=0.75," in card
    assert "learning_rate=0.5, weight_decay=0.25, beta=0.9" in card
    assert "adamw" not in card.lower()


def test_adapters(tmp_path):
    """PEFT writes cards of its own, before and after the Trainer's, and again at every save."""
    peft = pytest.importorskip("peft")

    def adapted(cls):
        model = peft.get_peft_model(llama(), peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
        trainer = trained(tmp_path / cls.__name__, cls, model)
        trainer.save_model()
        return trainer, card_of(trainer)

    plain, ours = (adapted(cls) for cls in (Trainer, AdaFisherTrainer))
    changed = changes(plain[1], SECTION.sub("", ours[1]))
    assert changed[0] == "+- adafisher"
    assert all(line.startswith(("+- optimizer", "-- optimizer", "-update_interval", "+beta=")) for line in changed[1:])
    trainer, card = ours
    trainer.save_model()
    assert card_of(trainer) == card
    file = card_file(trainer)
    file.write_text(card.replace("More information needed", "It writes news.", 1))
    trainer.save_model()
    assert "It writes news." in card_of(trainer)
