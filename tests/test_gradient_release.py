"""gradient_release: the same trajectory, without two gradients at a time."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from adafisher_hf import AdaFisherConfig, AdaFisherW
from tests.models import llama

IDS = torch.randint(0, 11, (6, 4, 5), generator=torch.Generator().manual_seed(1))
KNOBS = dict(lr=1e-2, weight_decay=0.1, update_warmup=2, update_interval=2)


def twins(tied=True, **knobs):
    torch.manual_seed(0)
    model = llama(vocab_size=11, tie_word_embeddings=tied).double()
    other = copy.deepcopy(model)
    return [
        (model, AdaFisherW(model, gradient_release=True, **KNOBS, **knobs)),
        (other, AdaFisherW(other, **KNOBS, **knobs)),
    ]


def train(model, optimizer, batches=IDS):
    for ids in batches:
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("knobs", [{}, {"nesterov": True}, {"estimator": "improved"}])
def test_the_trajectory_is_the_same(tied, knobs):
    (model, optimizer), (other, theirs) = twins(tied, **knobs)
    train(model, optimizer)
    train(other, theirs)
    for mine, expected in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-12, atol=1e-15)
    for mine, expected in zip(optimizer.state.values(), theirs.state.values(), strict=True):
        for key, value in mine.items():
            torch.testing.assert_close(value, expected[key], rtol=1e-9, atol=1e-18, msg=key)
    mine, expected = optimizer.summary(), theirs.summary()
    assert mine.keys() == expected.keys()
    assert all(mine[kind] == pytest.approx(expected[kind], rel=1e-6) for kind in mine)


def test_no_gradient_is_left_after_the_backward_pass():
    model, optimizer = twins()[0]
    held = []
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(
            lambda _: held.append(sum(p.grad is not None for p in model.parameters()))
        )
    train(model, optimizer)
    assert set(held) == {0} and len(held) == len(IDS) * len(list(model.parameters()))


def test_noise_is_not_blown_up():
    """σ's floor is that of the step before: a bias whose gradient is rounding noise stays put from the second on."""

    class Silent(nn.Module):
        def __init__(self):
            super().__init__()
            self.loud, self.noise = nn.Linear(4, 3, bias=False), nn.Parameter(torch.zeros(3))

        def forward(self, x):
            return self.loud(x).square().sum() + (1e-12 * self.noise).sum()

    moved = []
    for released in (True, False):
        torch.manual_seed(0)
        model = Silent()
        optimizer = AdaFisherW(model, lr=0.1, gradient_release=released)
        for _ in range(3):
            before = model.noise.detach().clone()
            model(torch.ones(2, 4)).backward()
            optimizer.step()
            optimizer.zero_grad()
        moved.append((model.noise - before).norm().item())
    assert moved[0] == pytest.approx(moved[1], rel=0.1)
    assert moved[0] < 1e-4


def test_a_second_backward_pass_is_one_error():
    model, optimizer = twins()[0]
    model(input_ids=IDS[0], labels=IDS[0]).loss.backward()
    with pytest.raises(ValueError, match=r"call step\(\) after each one \(no accumulation\)"):
        model(input_ids=IDS[0], labels=IDS[0]).loss.backward()
    optimizer.close()


def test_a_gradient_that_is_not_finite_stays_out():
    (model, optimizer), (other, theirs) = twins()
    for subject, its in ((model, optimizer), (other, theirs)):
        train(subject, its, IDS[:1])
        (subject(input_ids=IDS[0], labels=IDS[0]).loss * torch.inf).backward()
        its.step()
        its.zero_grad()
        train(subject, its, IDS[1:])
    for mine, expected in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-12, atol=1e-15)


def test_resumed_run_goes_on_the_same(tmp_path):
    (model, optimizer), _ = twins()
    train(model, optimizer, IDS[:3])
    saved = copy.deepcopy(optimizer.state_dict())
    weights = copy.deepcopy(model.state_dict())
    train(model, optimizer, IDS[3:])
    (again, resumed), _ = twins()
    again.load_state_dict(weights)
    resumed.load_state_dict(saved)
    train(again, resumed, IDS[3:])
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))


def test_hooks_come_off_and_keep_nothing_alive():
    model, optimizer = twins()[0]
    reference = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert reference() is None
    model(input_ids=IDS[0], labels=IDS[0]).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"structure": "kronecker"}, "it belongs to structure='diagonal'"),
        ({"mode": "paper"}, "it belongs to structure='diagonal'"),
        ({"lora": "pair"}, "leave one out"),
    ],
)
def test_what_it_does_not_go_with(options, message):
    with pytest.raises(ValueError, match=message):
        AdaFisherConfig(gradient_release=True, **options)


def test_through_the_trainer(tmp_path):
    losses = []
    for released in ("true", "false"):
        torch.manual_seed(0)
        args = TrainingArguments(
            output_dir=str(tmp_path / released),
            optim="adafisherw",
            optim_args=f"gradient_release={released}",
            max_grad_norm=0.0,
            max_steps=4,
            learning_rate=1e-2,
            per_device_train_batch_size=4,
            use_cpu=True,
            report_to="none",
            logging_steps=1,
            save_strategy="no",
        )
        rows = [{"input_ids": row, "labels": row} for row in IDS.flatten(0, 1)]
        trainer = Trainer(llama(vocab_size=11), args, train_dataset=rows)
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_with_a_momentum_in_eight_bits():
    pytest.importorskip("bitsandbytes")
    losses = []
    for released in (True, False):
        torch.manual_seed(0)
        model = llama(vocab_size=11, hidden_size=64, intermediate_size=64)
        optimizer = AdaFisherW(model, gradient_release=released, state_dtype="int8", **KNOBS)
        train(model, optimizer)
        losses.append(model(input_ids=IDS[0], labels=IDS[0]).loss.item())
        assert any(state["exp_avg"].dtype is torch.uint8 for state in optimizer.state.values())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
