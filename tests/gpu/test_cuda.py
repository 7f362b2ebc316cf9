"""What only a GPU shows: its loss scaler, its kernels, its compiler, and no waiting for it.

In float64 the two devices agree to many digits, so that a wrong index or a lost synchronisation is seen at once.
"""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import Trainer, TrainerCallback, TrainingArguments

from adafisher_hf import AdaFisherTrainer, AdaFisherW
from tests.models import llama, next_token_loss, tiny, tiny_batches
from tests.test_invariance import STRUCTURES, every_structure

pytestmark = pytest.mark.gpu

KNOBS = dict(lr=1e-2, weight_decay=0.1, update_warmup=3, update_interval=2)
IDS = torch.arange(64).view(4, 16)


def step(model, optimizer, ids, scaler=None, factor=1.0, autocast=None):
    device = next(model.parameters()).device
    ids = ids.to(device)
    with torch.autocast(device.type, autocast or torch.bfloat16, enabled=autocast is not None):
        loss = model(input_ids=ids, labels=ids).loss
    if scaler is None:
        loss.backward()
        optimizer.step()
    else:
        scaler.scale(loss * factor).backward()
        scaler.step(optimizer)
        scaler.update()
    model.zero_grad()
    return loss.item()


def everything(model, optimizer):
    found = {f"weight {name}": p.detach().clone() for name, p in model.named_parameters()}
    for name, p in model.named_parameters():
        found |= {f"{key} of {name}": value.clone() for key, value in optimizer.state[p].items()}
    return found | {"steps": torch.tensor([group["step"] for group in optimizer.param_groups])}


def assert_same(a, b):
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def weights(model):
    return torch.cat([p.detach().flatten().cpu() for p in model.parameters()])


@every_structure
def test_both_devices_train_alike(device, structure):
    ends = []
    for place in ("cpu", device):
        model = tiny().to(place)
        optimizer = AdaFisherW(model.parameters(), model=model, **KNOBS, **STRUCTURES[structure])
        for ids in tiny_batches(10):
            model.zero_grad()
            next_token_loss(model, ids.to(place)).backward()
            optimizer.step()
        ends.append(weights(model))
    torch.testing.assert_close(*ends, rtol=1e-6, atol=1e-8)


@every_structure
def test_forced_overflows_leave_no_trace(device, structure):
    """fp16 autocast and the device's own GradScaler; two steps in the middle have an infinite loss."""
    model = llama().to(device)
    optimizer = AdaFisherW(model, **KNOBS, **STRUCTURES[structure])
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**10)
    for i in range(8):
        before = everything(model, optimizer) if i else None
        overflow = i in (3, 4)
        step(model, optimizer, IDS.roll(i), scaler, torch.inf if overflow else 1.0, torch.float16)
        if overflow:
            assert_same(everything(model, optimizer), before)
            assert not optimizer._statistics.fired() or not any(
                torch.isinf(tap.sums.output).any()
                for tap in optimizer._statistics._taps.values()
                if tap.sums is not None
            )
    assert optimizer.param_groups[0]["step"] == 6
    assert all(torch.isfinite(value).all() for value in everything(model, optimizer).values())


@pytest.mark.parametrize("mode", ["calibrated", "paper"])
def test_a_run_with_overflows_is_the_run_without(device, mode):
    """Full precision under the scaler, so that nothing but the scale differs."""
    ends = []
    for overflows in ((), (0, 4, 5)):
        model = tiny().to(device)
        knobs = {**KNOBS, "mode": mode, "lr": 1e-2 if mode == "calibrated" else 1e-4}
        optimizer = AdaFisherW(model.parameters(), model=model, **knobs)
        scaler = torch.amp.GradScaler(device.type, init_scale=2.0**16)
        optimizer.attach_scaler(scaler)
        for i, ids in enumerate(tiny_batches(10)):
            if i in (0, 4, 5) and not overflows:
                continue
            model.zero_grad()
            loss = next_token_loss(model, ids.to(device))
            scaler.scale(loss * torch.inf if i in overflows else loss).backward()
            scaler.step(optimizer)
            scaler.update()
        ends.append(weights(model))
    torch.testing.assert_close(*ends, rtol=1e-7, atol=1e-10)


def test_fp16_through_the_trainer_starts_with_overflows(cuda, tmp_path):
    """The scale is set so high that the first steps overflow by themselves."""
    states = []

    class Watch(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            scaler = trainer.accelerator.scaler
            scaler.load_state_dict({**scaler.state_dict(), "scale": 2.0**40})

        def on_step_end(self, args, state, control, **kwargs):
            if trainer.optimizer.step_was_skipped:
                states.append(sum(len(s) for s in kwargs["optimizer"].state.values()))

    args = TrainingArguments(
        output_dir=str(tmp_path), optim="adafisherw", learning_rate=1e-2, max_steps=40, fp16=True, logging_steps=10,
        per_device_train_batch_size=4, save_strategy="no", report_to="none", disable_tqdm=True,
    )  # fmt: skip
    data = [{"input_ids": row, "labels": row} for row in IDS.repeat(20, 1)]
    trainer = AdaFisherTrainer(llama(), args, train_dataset=data, callbacks=[Watch])
    trainer.train()
    optimizer = trainer.optimizer.optimizer
    assert states
    assert optimizer.param_groups[0]["step"] == 40 - len(states)
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("how", ["autocast", "weights"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_statistics_are_those_of_full_precision(device, how, dtype):
    found = []
    for half in (False, True):
        model = llama().to(device)
        model = model.to(dtype) if half and how == "weights" else model
        optimizer = AdaFisherW(model, structure="kronecker", max_factor_dim=1, **KNOBS)
        step(model, optimizer, IDS, autocast=dtype if half and how == "autocast" else None)
        found.append({name: optimizer.curvature(p) for name, p in model.named_parameters()})
        half_keys = {"compensation"}
        assert all(
            v.dtype == torch.float32 for s in optimizer.state.values() for k, v in s.items() if k not in half_keys
        )
    for name, value in found[0].items():
        relative = (found[1][name] / value - 1).abs()
        assert relative.median() < 0.02, name
        assert relative.max() < 0.5, name


def trajectory(device, structure, prepare=lambda model: model, dtype=torch.float64):
    model = llama().to(device, dtype).train()
    optimizer = AdaFisherW(model.parameters(), model=model, **KNOBS, **STRUCTURES[structure])
    network = prepare(model)
    for i in range(6):
        ids = IDS.roll(i).to(device)
        network(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        model.zero_grad()
    return weights(model)


@every_structure
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_changes_nothing(device, structure, reentrant):
    def prepare(model):
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        if reentrant:
            model.enable_input_require_grads()
        return model

    torch.testing.assert_close(
        trajectory(device, structure, prepare), trajectory(device, structure), rtol=1e-7, atol=1e-9
    )


@pytest.mark.parametrize("structure", ["diagonal", "kronecker"])
def test_inductor_makes_one_graph_and_changes_nothing(device, structure):
    torch.compiler.reset()
    counter = CompileCounterWithBackend("inductor")
    compiled = trajectory(device, structure, lambda model: torch.compile(model, backend=counter, fullgraph=True))
    assert counter.frame_count == 1
    torch.testing.assert_close(compiled, trajectory(device, structure), rtol=1e-5, atol=1e-7)


def test_compiled_bf16_through_the_trainer(cuda, tmp_path):
    args = TrainingArguments(
        output_dir=str(tmp_path), optim="adafisherw", optim_args="update_warmup=2,update_interval=3",
        learning_rate=1e-2, max_steps=20, bf16=True, torch_compile=True, logging_steps=5,
        per_device_train_batch_size=4, save_strategy="no", report_to="none", disable_tqdm=True,
    )  # fmt: skip
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    data = [{"input_ids": row, "labels": row} for row in IDS.repeat(20, 1)]
    trainer = Trainer(llama(), args, train_dataset=data)
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert losses[-1] < losses[0]
    assert not [reason for reason in torch._dynamo.utils.counters["graph_break"] if "adafisher" in reason]
    optimizer = trainer.optimizer.optimizer
    assert all(optimizer.curvature(p).std() > 0 for p in trainer.model.parameters() if p.dim() == 2)


@pytest.mark.parametrize("state_dtype", ["float32", "int8"])
@pytest.mark.parametrize("refreshing", [False, True])
def test_a_diagonal_step_does_not_wait_for_the_device(cuda, refreshing, state_dtype):
    """Whatever copies a number to the host is an error here; hooks and the optimizer's step are both watched."""
    if state_dtype == "int8":
        pytest.importorskip("bitsandbytes")
    model = llama(hidden_size=64).to(cuda).train()
    knobs = dict(lr=1e-2, update_warmup=4, update_interval=1 if refreshing else 100)
    optimizer = AdaFisherW(model, state_dtype=state_dtype, **knobs)
    for i in range(5):
        step(model, optimizer, IDS.roll(i))
    ids = IDS.to(cuda)
    loss = model(input_ids=ids, labels=ids).loss
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss.backward()
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_eight_bits_of_momentum_train_as_on_the_other_device(device):
    """Not to the bit: of two codes that are nearly as near the devices may take either."""
    pytest.importorskip("bitsandbytes")
    losses = []
    for place in ("cpu", device):
        model = llama(hidden_size=64).to(place)
        optimizer = AdaFisherW(model, lr=1e-3, state_dtype="int8")
        losses.append([step(model, optimizer, IDS.roll(i % 4)) for i in range(20)])
        assert optimizer.state[model.model.embed_tokens.weight]["exp_avg"].dtype == torch.uint8
    assert losses[0] == pytest.approx(losses[1], abs=0.02)


def test_no_activation_is_kept(cuda):
    """Between the forward and the backward pass the hooks hold vectors, not activations."""
    held = []
    for hooked in (False, True):
        torch.cuda.empty_cache()
        model = llama(hidden_size=256, intermediate_size=512).to(cuda).train()
        optimizer = AdaFisherW(model, lr=1e-2) if hooked else None
        ids = torch.randint(0, 64, (32, 64), generator=torch.Generator().manual_seed(0)).to(cuda)
        before = torch.cuda.memory_allocated()
        loss = model(input_ids=ids, labels=ids).loss
        held.append(torch.cuda.memory_allocated() - before)
        loss.backward()
        del loss, model, optimizer
    assert held[1] < 1.05 * held[0]


@pytest.mark.parametrize("structure", ["diagonal", "kronecker"])
def test_a_resumed_run_ends_where_the_whole_one_does(cuda, tmp_path, structure):
    def trainer(seed=0):
        knobs = {"update_warmup": 3, "update_interval": 2, **STRUCTURES[structure]}
        args = TrainingArguments(
            output_dir=str(tmp_path), optim="adafisherw", learning_rate=1e-2,
            optim_args=",".join(f"{key}={value}" for key, value in knobs.items()),
            max_steps=8, save_steps=3, per_device_train_batch_size=4, seed=3,
            report_to="none", disable_tqdm=True,
        )  # fmt: skip
        data = [{"input_ids": row, "labels": row} for row in IDS.repeat(12, 1)]
        return Trainer(llama(seed).double(), args, train_dataset=data)

    whole, resumed = trainer(), trainer(seed=5)
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    torch.testing.assert_close(weights(resumed.model), weights(whole.model), rtol=1e-7, atol=1e-9)


def test_state_moves_between_devices(cuda):
    """A checkpoint of one device goes on on the other."""
    ends = []
    for second in ("cpu", cuda):
        model = tiny()
        optimizer = AdaFisherW(model.parameters(), model=model, **KNOBS)
        for ids in tiny_batches(4):
            model.zero_grad()
            next_token_loss(model, ids).backward()
            optimizer.step()
        state = copy.deepcopy(optimizer.state_dict())
        model = model.to(second)
        moved = AdaFisherW(model.parameters(), model=model, **KNOBS)
        moved.load_state_dict(state)
        assert all(v.device.type == torch.device(second).type for s in moved.state.values() for v in s.values())
        for ids in tiny_batches(4, seed=2):
            model.zero_grad()
            next_token_loss(model, ids.to(second)).backward()
            moved.step()
        ends.append(weights(model))
    torch.testing.assert_close(*ends, rtol=1e-6, atol=1e-8)


def test_liger_is_said_to_pass_the_head_by_and_the_rest_is_right(cuda, tmp_path, caplog):
    pytest.importorskip("liger_kernel", reason="pip install liger-kernel")
    found = []
    for liger in (False, True):
        args = TrainingArguments(
            output_dir=str(tmp_path), optim="adafisherw", learning_rate=1e-2, max_steps=1, use_liger_kernel=liger,
            per_device_train_batch_size=4, save_strategy="no", report_to="none", disable_tqdm=True,
        )  # fmt: skip
        data = [{"input_ids": row, "labels": row} for row in IDS]
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            trainer = Trainer(llama(tie_word_embeddings=False), args, train_dataset=data)
            trainer.train()
        assert ("lm_head did not run" in caplog.text) == liger
        optimizer = trainer.optimizer.optimizer
        named = trainer.model.named_parameters()
        found.append({name: optimizer.curvature(p) for name, p in named if "lm_head" not in name})
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-2, atol=1e-3, msg=lambda m, n=name: f"{n}: {m}")
