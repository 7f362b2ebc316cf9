"""From one person's training run, over the Hub, to another's."""

import json

import pytest
import yaml

from adafisher_hf.config.adafisher import CONFIG_NAME
from tests.hub import actions

STRATEGIES = {
    "end": set(),
    "every_save": set(),
    "checkpoint": {"last-checkpoint/"},
    "all_checkpoints": {"checkpoint-2/", "checkpoint-4/"},
}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_config_travels_with_every_push(hub, owner, repo, tmp_path, strategy):
    settings = {"save_strategy": "steps", "save_steps": 2, "hub_always_push": True}
    owner(actions.train, tmp_path, push_to_hub=True, hub_model_id=repo, hub_strategy=strategy, **settings,
          finish=strategy == "end")  # fmt: skip
    files = hub.files(repo)
    expected = (tmp_path / CONFIG_NAME).read_bytes()
    assert {name.removesuffix(CONFIG_NAME) for name in files if name.endswith(CONFIG_NAME)} == {
        "",
        *STRATEGIES[strategy],
    }
    assert all(content == expected for name, content in files.items() if name.endswith(CONFIG_NAME))
    assert "model.safetensors" in files
    assert json.loads(expected)["update_interval"] == 2


def test_a_checkpoint_is_pushed_with_the_config_of_its_optimizer(hub, owner, repo, tmp_path):
    """Even if the folder's own was lost: whoever cleans up must not leave a push without it."""
    settings = {"save_strategy": "steps", "save_steps": 4, "hub_strategy": "every_save"}
    owner(actions.train_losing_the_config, tmp_path, push_to_hub=True, hub_model_id=repo, **settings)
    assert CONFIG_NAME in hub.files(repo)


def test_a_stranger_trains_the_same_way(hub, owner, stranger, repo, tmp_path):
    knobs = "structure=kronecker,damping=1e-07,update_interval=2,update_warmup=2,max_factor_dim=40"
    config, weights = owner(
        actions.train, tmp_path / "a", optim_args=knobs, adam_beta1=0.8, push_to_hub=True, hub_model_id=repo,
        finish=True,
    )  # fmt: skip
    assert config.beta == 0.8
    found = stranger(actions.train, tmp_path / "b", optim_args=f"config={repo}")
    assert found == (config, weights)
    assert (tmp_path / "b" / CONFIG_NAME).read_bytes() == hub.files(repo)[CONFIG_NAME]


def test_the_card_on_the_hub_says_how_to_load_it(hub, owner, stranger, repo, tmp_path):
    owner(actions.train, tmp_path / "a", push_to_hub=True, hub_model_id=repo, finish=True)
    card = hub.files(repo)["README.md"].decode()
    metadata = yaml.safe_load(card.split("---\n")[1])
    assert metadata["tags"] == ["generated_from_trainer", "adafisher"]
    assert f'optim_args="config={repo}"' in card
    assert "update_interval=2, update_warmup=2" in card
    code = card.split("```python\n")[1].split("```")[0].replace('"out"', f'"{tmp_path / "b"}"')
    assert stranger(actions.run_card, code)["update_interval"] == 2


def test_the_card_names_the_revision_that_was_pushed_to(hub, owner, repo, tmp_path):
    owner(actions.push, repo)
    owner(actions.push, repo, revision="try")
    owner(actions.train, tmp_path, push_to_hub=True, hub_model_id=repo, hub_revision="try", finish=True)
    assert f'optim_args="config={repo}@try"' in hub.files(repo, "try")["README.md"].decode()
    assert json.loads(hub.files(repo, "main")[CONFIG_NAME])["update_interval"] == 10
