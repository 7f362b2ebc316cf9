"""What must not change the trajectory: the scale of the loss, micro-batches, the kernel, saving and loading."""

from __future__ import annotations

import io

import pytest
import torch

from adafisher_hf import AdaFisher, AdaFisherW
from tests.models import next_token_loss, tiny, tiny_batches

STEPS = 20
STRUCTURES = {
    "diagonal": {},
    "kronecker": {"structure": "kronecker", "basis_interval": 2, "token_stride": 1},
    "rotated": {"structure": "kronecker", "basis_interval": 2, "second_moment": "rotated", "token_stride": 1},
    "automatic": {"structure": "kronecker", "basis_interval": 2},
    "orthogonal": {"structure": "orthogonal", "basis_interval": 2},
    "strided": {"structure": "kronecker", "max_factor_dim": 8, "token_stride": 2},
}
every_structure = pytest.mark.parametrize("structure", STRUCTURES)


def train(model, optimizer, batches, scale=1.0, micro_batches=1):
    for ids in batches:
        optimizer.zero_grad()
        for part in ids.chunk(micro_batches):
            (next_token_loss(model, part) * (scale / micro_batches)).backward()
        optimizer.step()
    return torch.cat([p.detach().flatten().double() for p in model.parameters()])


def trajectory(cls=AdaFisherW, scale=1.0, micro_batches=1, dtype=torch.float64, **knobs):
    model = tiny(dtype=dtype)
    knobs = dict(lr=1e-2, weight_decay=0.1, update_warmup=5, update_interval=3) | knobs
    return train(model, cls(model.parameters(), model=model, **knobs), tiny_batches(STEPS), scale, micro_batches)


@every_structure
@pytest.mark.parametrize("cls", [AdaFisher, AdaFisherW])
@pytest.mark.parametrize("scale", [1e-4, 1e-2, 1e2, 1e4, 65536.0])
def test_scale_of_the_loss_changes_nothing(cls, scale, structure):
    knobs = STRUCTURES[structure]
    torch.testing.assert_close(trajectory(cls, scale, **knobs), trajectory(cls, **knobs), rtol=1e-5, atol=1e-9)


def test_scale_may_change_between_refreshes():
    model = tiny()
    optimizer = AdaFisherW(
        model.parameters(), model=model, lr=1e-2, update_warmup=0, update_interval=1, beta=0.0, beta2=0.0
    )
    other = tiny()
    other_optimizer = AdaFisherW(
        other.parameters(), model=other, lr=1e-2, update_warmup=0, update_interval=1, beta=0.0, beta2=0.0
    )
    for i, ids in enumerate(tiny_batches(STEPS)):
        train(model, optimizer, [ids])
        theta = train(other, other_optimizer, [ids], scale=10.0 ** (i % 5))
    torch.testing.assert_close(
        theta, torch.cat([p.detach().flatten() for p in model.parameters()]), rtol=1e-5, atol=1e-9
    )


@every_structure
@pytest.mark.parametrize("micro_batches", [2, 4])
def test_micro_batches_change_nothing(micro_batches, structure):
    knobs = STRUCTURES[structure]
    whole, parts = trajectory(**knobs), trajectory(micro_batches=micro_batches, **knobs)
    torch.testing.assert_close(parts, whole, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("cls", [AdaFisher, AdaFisherW])
@pytest.mark.parametrize("mode", ["calibrated", "paper", "reference"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_kernels_agree(cls, mode, dtype):
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 3e-2}[dtype]
    lr = 1e-2 if mode == "calibrated" else 1e-4
    plain, foreach = (trajectory(cls, dtype=dtype, mode=mode, kernel=kernel, lr=lr) for kernel in ("plain", "foreach"))
    torch.testing.assert_close(foreach, plain, rtol=tolerance, atol=tolerance)


@every_structure
@pytest.mark.parametrize("cls", [AdaFisher, AdaFisherW])
@pytest.mark.parametrize("state_dtype", ["float32", "bfloat16"])
def test_kernels_agree_on_every_structure(cls, structure, state_dtype):
    knobs = dict(state_dtype=state_dtype, **STRUCTURES[structure])
    plain, foreach = (trajectory(cls, kernel=kernel, **knobs) for kernel in ("plain", "foreach"))
    torch.testing.assert_close(foreach, plain, rtol=1e-9, atol=1e-11)


@every_structure
@pytest.mark.parametrize("kernel", ["plain", "foreach"])
def test_full_size_buffers_are_the_only_things_that_are_rounded(structure, kernel):
    """Every other buffer stays wide, and the trajectory stays within bfloat16's relative precision of a step."""
    model = tiny()
    knobs = dict(STRUCTURES[structure], lr=1e-2, kernel=kernel)
    optimizer = AdaFisherW(model.parameters(), model=model, state_dtype="bfloat16", **knobs)
    start = train(model, optimizer, [])
    train(model, optimizer, tiny_batches(2))
    for state in optimizer.state.values():
        narrow = {key for key, value in state.items() if value.dtype == torch.bfloat16}
        assert narrow == {"exp_avg", "rotated_sq"} & state.keys()
        assert all(value.dtype == torch.float64 for key, value in state.items() if key not in narrow)
    knobs = dict(kernel=kernel, weight_decay=0.0, **STRUCTURES[structure])
    rounded, exact = trajectory(state_dtype="bfloat16", **knobs), trajectory(**knobs)
    assert 0 < (rounded - exact).norm() < 2e-2 * (exact - start).norm()


COARSE = {
    "bfloat16": {"state_dtype": "bfloat16"},
    "rotated, bfloat16": {**STRUCTURES["rotated"], "state_dtype": "bfloat16"},
}


@pytest.mark.parametrize("setting", [*STRUCTURES, "paper", "reference", *COARSE])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_resume_is_bitwise(setting, dtype):
    batches = tiny_batches(14)
    others = {"paper": {"mode": "paper", "lr": 1e-4}, "reference": {"mode": "reference", "lr": 1e-4}}
    chosen = (STRUCTURES | others | COARSE)[setting]
    knobs = dict(lr=1e-2, update_warmup=3, update_interval=4, weight_decay=0.1) | chosen
    model = tiny(dtype=dtype)
    optimizer = AdaFisherW(model.parameters(), model=model, **knobs)
    train(model, optimizer, batches[:6])
    buffer = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
    straight = train(model, optimizer, batches[6:])

    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    resumed = tiny(seed=7, dtype=dtype)
    resumed.load_state_dict(saved["model"])
    second = AdaFisherW(resumed.parameters(), model=resumed, **knobs)
    second.load_state_dict(saved["optimizer"])
    for state in second.state.values():
        narrow = {"compensation"} | ({"exp_avg", "rotated_sq"} if setting in COARSE else set())
        wide = {key: value.dtype for key, value in state.items() if key not in narrow}
        assert set(wide.values()) == {torch.promote_types(dtype, torch.float32)}
    assert torch.equal(train(resumed, second, batches[6:]), straight)


def test_loading_does_not_share_memory_with_the_saved_state():
    model = tiny()
    optimizer = AdaFisherW(model.parameters(), model=model)
    train(model, optimizer, tiny_batches(1))
    saved = optimizer.state_dict()
    before = {key: value.clone() for key, value in saved["state"][0].items()}
    other = AdaFisherW(model.parameters(), model=model)
    other.load_state_dict(saved)
    train(model, other, tiny_batches(2))
    assert all(torch.equal(saved["state"][0][key], value) for key, value in before.items())
