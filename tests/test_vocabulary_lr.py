"""The learning rate of embeddings and output heads: a group of their own in all but name."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers as t

from adafisher_hf import AdaFisher, AdaFisherW
from adafisher_hf.update.batch import LR_MULTIPLE
from tests.architectures import CASES
from tests.models import llama, next_token_loss, tiny, tiny_batches
from tests.test_invariance import STRUCTURES


def train(optimizer, model, count=6):
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    for ids in tiny_batches(count):
        optimizer.zero_grad()
        next_token_loss(model, ids).backward()
        optimizer.step()
        schedule.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("kernel", ["plain", "foreach"])
@pytest.mark.parametrize("cls", [AdaFisher, AdaFisherW])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_multiple_is_a_group_with_this_learning_rate(structure, cls, kernel):
    """Weight decay too, as AdamW's users know it of groups; schedules multiply both."""
    knobs = dict(STRUCTURES[structure], kernel=kernel, update_warmup=3, update_interval=2)
    model, grouped = tiny(), tiny()
    ours = train(cls(model, lr=1e-2, weight_decay=0.1, vocabulary_lr=3.0, **knobs), model)
    tables = [grouped.embed.weight]
    rest = [p for p in grouped.parameters() if p is not tables[0]]
    groups = [{"params": rest}, {"params": tables, "lr": 3e-2}]
    theirs = train(cls(groups, lr=1e-2, model=grouped, weight_decay=0.1, vocabulary_lr=1.0, **knobs), grouped)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    other = tiny()
    assert not torch.allclose(ours, train(cls(other, lr=1e-2, weight_decay=0.1, vocabulary_lr=1.0, **knobs), other))


def multiples(model, **knobs):
    optimizer = AdaFisherW(model, **knobs)
    optimizer.init_state()
    state = {block.name: optimizer.state[block.parameter] for block in optimizer._statistics}
    return {name: round(values[LR_MULTIPLE].item(), 3) for name, values in state.items() if LR_MULTIPLE in values}


def test_from_scratch_it_goes_by_the_size_of_the_weights():
    model = llama()
    assert multiples(model).keys() == {"model.embed_tokens.weight"}
    for rms, expected in ((0.02, 4.0), (0.005, 2.0), (1e-4, 1.0), (10.0, 4.0)):
        torch.nn.init.normal_(model.model.embed_tokens.weight, std=rms)
        found = multiples(model)["model.embed_tokens.weight"]
        assert found == pytest.approx(expected, rel=0.03)


def test_loaded_weights_keep_the_learning_rate(tmp_path):
    model = llama()
    model.save_pretrained(tmp_path)
    loaded = t.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert set(multiples(loaded).values()) == {1.0}
    assert set(multiples(loaded, vocabulary_lr=2.0).values()) == {2.0}
    drawn = t.AutoModelForCausalLM.from_config(t.AutoConfig.from_pretrained(tmp_path))
    assert set(multiples(drawn).values()) == {1.0}  # nobody can tell: its config has the name, too
    assert set(multiples(copy.deepcopy(loaded)).values()) == {1.0}


def test_models_of_unknown_making_and_the_published_modes_keep_it_too():
    assert set(multiples(tiny()).values()) == {1.0}
    assert set(multiples(llama(), mode="paper").values()) == {1.0}


def test_it_is_kept_in_the_state_and_goes_on(tmp_path):
    model = llama()
    optimizer = AdaFisherW(model)
    optimizer.init_state()
    saved = optimizer.state_dict()
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(100)  # as after a long training
    other = AdaFisherW(model)
    other.load_state_dict(saved)
    assert (
        other.state[model.model.embed_tokens.weight][LR_MULTIPLE]
        == optimizer.state[model.model.embed_tokens.weight][LR_MULTIPLE]
    )


def test_another_one_than_the_saved_one_is_an_error():
    model = tiny()
    saved = AdaFisherW(model, vocabulary_lr=2.0)
    saved.init_state()
    with pytest.raises(ValueError, match="vocabulary_lr is 2.0, not 4.0"):
        AdaFisherW(model, vocabulary_lr=4.0).load_state_dict(saved.state_dict())


@pytest.mark.parametrize("name", CASES)
def test_every_model_of_the_list_has_a_multiple_for_its_tables_alone(name):
    found = multiples(CASES[name][0]())
    assert all(1.0 <= multiple <= 4.0 for multiple in found.values())
    assert found or name in ("resnet", "convnext", "wav2vec2")
