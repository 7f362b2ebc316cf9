"""state_dtype=int8: the trajectory of float32, nearly; the same laws; a state of plain tensors."""

from __future__ import annotations

import copy
import io
import subprocess
import sys

import peft
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from adafisher_hf import AdaFisher, AdaFisherW, AdamQLR, FAdam, SIRFShampoo
from adafisher_hf.layers import Layout
from adafisher_hf.update import batch, blockwise, foreach
from tests.models import Routed, Wide, next_token_loss, tiny_batches

bitsandbytes = pytest.importorskip("bitsandbytes")

SETTINGS = {
    "diagonal": {},
    "coupled": {"cls": AdaFisher},
    "kronecker": {"structure": "kronecker", "basis_interval": 2, "token_stride": 1},
    "orthogonal": {"structure": "orthogonal", "basis_interval": 2},
    "paper": {"mode": "paper", "lr": 1e-4},
}
every_setting = pytest.mark.parametrize("setting", SETTINGS)
every_kernel = pytest.mark.parametrize("kernel", ["plain", "foreach"])


def build(setting="diagonal", dtype=torch.float32, seed=0, model_class=Wide, **knobs):
    torch.manual_seed(seed)
    model = model_class().to(dtype)
    knobs = dict(lr=3e-3, weight_decay=0.1, update_warmup=5, update_interval=3, state_dtype="int8") | (
        SETTINGS[setting] | knobs
    )
    cls = knobs.pop("cls", AdaFisherW)
    return model, cls(model, **knobs)


def train(model, optimizer, batches, scale=1.0, micro_batches=1):
    for ids in batches:
        optimizer.zero_grad()
        for part in ids.chunk(micro_batches):
            (next_token_loss(model, part) * (scale / micro_batches)).backward()
        optimizer.step()
    return torch.cat([p.detach().flatten().double() for p in model.parameters()])


def trajectory(scale=1.0, micro_batches=1, **knobs):
    return train(*build(**knobs), tiny_batches(20), scale, micro_batches)


def copied(optimizer):
    return copy.deepcopy(optimizer.state_dict()["state"])


def assert_equal_states(a, b):
    for tensors, others in zip(a.values(), b.values(), strict=True):
        assert tensors.keys() == others.keys()
        assert [key for key, value in tensors.items() if not torch.equal(value, others[key])] == []


# What is stored


def test_large_matrices_have_codes_and_all_else_stays_wide():
    model, optimizer = build()
    train(model, optimizer, tiny_batches(1))
    found = {}
    for name, p in model.named_parameters():
        state = optimizer.state[p]
        found[name] = (state["exp_avg"].dtype, tuple(state[blockwise.SCALE].shape) if blockwise.SCALE in state else ())
        assert state["exp_avg"].shape == p.shape
        assert all(type(value) is torch.Tensor for value in state.values())
        assert {value.dtype for key, value in state.items() if key != "exp_avg"} == {torch.float32}
    wide = (torch.float32, ())
    assert found == {
        "embed.weight": (torch.uint8, (81, 1)),
        "up.weight": (torch.uint8, (128, 1)),
        "down.weight": (torch.uint8, (64, 1)),
        "gate": (torch.uint8, (64, 1)),
        "odd.weight": (torch.uint8, (65, 1)),
        "even.weight": wide,  # rows of 65 are no whole blocks
        **dict.fromkeys(("up.bias", "norm.weight", "norm.bias", "odd.bias", "even.bias"), wide),
    }


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((1, 32, 128), 128),
        ((1, 31, 128), None),  # 3,968 numbers
        ((1, 64, 192), 64),
        ((1, 4096, 1), None),
        ((1, 500, 100), None),
        ((4, 16, 256), 128),
    ],
)
def test_blocks_lie_inside_rows(shape, expected):
    assert blockwise.block_length(Layout(shape)) == expected


@pytest.mark.parametrize(("width", "bytes_a_number"), [(128, 1 + 4 / 128), (192, 1 + 4 / 64)])
def test_about_a_byte_a_number(width, bytes_a_number):
    layer = nn.Linear(width, 256, bias=False)
    optimizer = AdaFisherW(layer, state_dtype="int8")
    optimizer.init_state()
    state = optimizer.state[layer.weight]
    assert state["exp_avg"].nbytes + state[blockwise.SCALE].nbytes == bytes_a_number * layer.weight.numel()


def test_what_is_read_is_what_was_written_to_a_hundredth():
    torch.manual_seed(0)
    momentum = torch.randn(3, 32, 128) * torch.logspace(-6, 6, 96).view(3, 32, 1)
    momentum[1, 2] = 0.0  # a word that does not occur
    codes, scale = torch.zeros(momentum.shape, dtype=torch.uint8), torch.zeros(3, 32, 1)
    assert torch.equal(blockwise.read(codes, scale, torch.float32), torch.zeros_like(momentum))
    blockwise.write(momentum, codes, scale, torch.tensor(True))
    assert torch.equal(scale, momentum.abs().amax(-1, keepdim=True))
    error = blockwise.read(codes, scale, torch.float32) - momentum
    assert (error.norm(dim=-1) <= 0.02 * momentum.norm(dim=-1)).all()
    before = codes.clone(), scale.clone()
    blockwise.write(-momentum, codes, scale, torch.tensor(False))
    assert torch.equal(codes, before[0]) and torch.equal(scale, before[1])


# The trajectory


def chains(count, seed=1):
    """Sequences in which nine of ten tokens follow from the one before: (16, 9) each."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        ids, noise = (torch.randint(0, 81, (16, 9), generator=generator) for _ in range(2))
        for i in range(1, 9):
            ids[:, i] = torch.where(noise[:, i] < 73, (7 * ids[:, i - 1] + 5) % 81, ids[:, i])
        found.append(ids)
    return found


@every_setting
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_trains_like_float32(setting, dtype):
    def loss(model):
        return sum(next_token_loss(model, ids).item() for ids in chains(8, seed=2)) / 8

    losses = []
    for state_dtype in ("float32", "int8"):
        model, optimizer = build(setting, dtype, state_dtype=state_dtype)
        train(model, optimizer, chains(40))
        losses.append(loss(model))
    assert losses[0] < loss(build(setting)[0]) - 0.5
    assert losses[0] != losses[1] and abs(losses[0] - losses[1]) < 0.01


@every_setting
def test_kernels_agree(setting):
    plain, foreach = (
        trajectory(setting=setting, dtype=torch.float64, kernel=kernel) for kernel in ("plain", "foreach")
    )
    torch.testing.assert_close(foreach, plain, rtol=1e-9, atol=1e-11)


@every_setting
@pytest.mark.parametrize("micro_batches", [2, 4])
def test_micro_batches_change_nothing(setting, micro_batches):
    knobs = dict(setting=setting, dtype=torch.float64)
    torch.testing.assert_close(
        trajectory(micro_batches=micro_batches, **knobs), trajectory(**knobs), rtol=1e-6, atol=1e-8
    )


@every_kernel
@pytest.mark.parametrize("power", [-12, 16])
def test_powers_of_two_of_the_loss_change_no_code(kernel, power):
    """The scales are multiples to the bit. Weights that stand still: what divides the momentum is rounded elsewhere."""
    (model, optimizer), (scaled, other) = (build(kernel=kernel, lr=0.0) for _ in range(2))
    train(model, optimizer, tiny_batches(20))
    train(scaled, other, tiny_batches(20), scale=2.0**power)
    for one, two in zip(copied(optimizer).values(), copied(other).values(), strict=True):
        key = blockwise.SCALE if blockwise.SCALE in one else "exp_avg"
        assert torch.equal(two[key], one[key] * 2.0**power)
        assert key == "exp_avg" or torch.equal(one["exp_avg"], two["exp_avg"])


@pytest.mark.parametrize("setting", [name for name in SETTINGS if name != "paper"])
@pytest.mark.parametrize("power", [-12, 16])
def test_powers_of_two_of_the_loss_change_nothing(setting, power):
    """Others do: numbers half way between two codes go the other way."""
    knobs = dict(setting=setting, dtype=torch.float64)
    torch.testing.assert_close(trajectory(2.0**power, **knobs), trajectory(**knobs), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("setting", [name for name in SETTINGS if name != "paper"])
@pytest.mark.parametrize("power", [-400, -125, 125, 400])
def test_momenta_that_float32_has_no_digits_for_vanish(setting, power):
    """Of float64 parameters: no step is not finite, and none is longer than that of an ordinary loss."""
    moved = []
    for scale in (1.0, 2.0**power):
        model, optimizer = build(setting, torch.float64)
        start = torch.cat([p.detach().flatten() for p in model.parameters()])
        moved.append((train(model, optimizer, tiny_batches(8), scale) - start).norm().item())
        assert all(
            state[blockwise.SCALE].isfinite().all() for state in copied(optimizer).values() if blockwise.SCALE in state
        )
    assert 0 < moved[1] < 1.05 * moved[0]


@every_kernel
@every_setting
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_gradient_that_is_not_finite_leaves_codes_and_scales(setting, kernel, bad):
    model, optimizer = build(setting, kernel=kernel)
    train(model, optimizer, tiny_batches(6))
    next_token_loss(model, tiny_batches(7)[-1]).backward()
    for p in model.parameters():
        p.grad.view(-1)[-1] = bad
    before, weights = copied(optimizer), copy.deepcopy(list(model.parameters()))
    optimizer.step()
    momenta = [{k: v for k, v in state.items() if k.startswith("exp_avg")} for state in before.values()]
    for old, new in zip(momenta, copied(optimizer).values(), strict=True):
        assert all(torch.equal(value, new[key]) for key, value in old.items())
    assert all(torch.equal(p, q) for p, q in zip(weights, model.parameters(), strict=True))
    model.zero_grad()
    assert train(model, optimizer, tiny_batches(2)).isfinite().all()


@every_kernel
def test_experts_are_rounded_each_by_itself(kernel):
    model, optimizer = build(model_class=lambda: Routed(64, 64), kernel=kernel, lr=1e-3)
    train(model, optimizer, tiny_batches(3))
    next_token_loss(model, tiny_batches(4)[-1]).backward()
    weight = model.experts.gate_up_proj
    weight.grad[1, 0, 0] = torch.nan
    state = {key: value.clone() for key, value in optimizer.state[weight].items()}
    assert state["exp_avg"].dtype == torch.uint8
    optimizer.step()
    for key in ("exp_avg", blockwise.SCALE):
        moved = [not torch.equal(old, new) for old, new in zip(state[key], optimizer.state[weight][key], strict=True)]
        assert moved == [True, False, True]


# What a step may not do


class Watch(TorchDispatchMode):
    """Waits for the device, and the largest tensor of floating-point numbers that was made."""

    def __init__(self):
        super().__init__()
        self.waits, self.largest = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.waits += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        if isinstance(result, torch.Tensor) and result.is_floating_point():
            self.largest = max(self.largest, result.numel())
        return result


def test_a_step_neither_waits_nor_has_a_buffer_larger_than_a_bucket(monkeypatch):
    monkeypatch.setattr(batch, "BUCKET_NUMBERS", 9_000)
    monkeypatch.setattr(foreach, "surely", lambda mask: False)  # as on a device; here it need not be waited for
    model = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(10)))
    optimizer = AdaFisherW(model, state_dtype="int8", update_warmup=1, update_interval=100)
    for step in range(3):
        model.zero_grad()
        model(torch.randn(3, 64)).square().sum().backward()
        with Watch() as watch:
            optimizer.step()
        if step:  # the first asks once whether there is any gradient, and makes the state
            assert (watch.waits, watch.largest) == (0, 64 * 64)


def test_a_pair_of_factors_takes_one_step_whatever_their_momenta_are_kept_in():
    losses = []
    for state_dtype in ("float32", "int8"):
        torch.manual_seed(0)
        model = peft.get_peft_model(nn.Sequential(nn.Linear(512, 32)), peft.LoraConfig(r=8, target_modules=["0"]))
        optimizer = AdaFisherW(model, lr=3e-3, lora="pair", state_dtype=state_dtype)
        for _ in range(20):
            model.zero_grad()
            x = torch.randn(64, 512, generator=torch.Generator().manual_seed(1))
            loss = (model(x) - x[:, :32]).square().mean()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    kept = {
        name[-16:-15]: optimizer.state[p]["exp_avg"].dtype for name, p in model.named_parameters() if p.requires_grad
    }
    assert kept == {"A": torch.uint8, "B": torch.float32}
    assert losses[0] != losses[1] and abs(losses[0] - losses[1]) < 0.01


# Saving and loading


@every_setting
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_resume_is_bitwise(setting, dtype):
    batches = tiny_batches(14)
    model, optimizer = build(setting, dtype)
    train(model, optimizer, batches[:6])
    buffer = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
    straight = train(model, optimizer, batches[6:])
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    resumed, second = build(setting, dtype, seed=7)
    resumed.load_state_dict(saved["model"])
    second.load_state_dict(saved["optimizer"])
    assert torch.equal(train(resumed, second, batches[6:]), straight)
    assert_equal_states(copied(second), copied(optimizer))


def test_loading_makes_no_wide_copy():
    _, optimizer = build(model_class=lambda: nn.Linear(128, 256, bias=False))
    optimizer.init_state()
    state = copy.deepcopy(optimizer.state_dict())
    with Watch() as watch:
        optimizer.load_state_dict(state)
    assert watch.largest == 256


def test_a_copy_goes_on_alike():
    model, optimizer = build()
    train(model, optimizer, tiny_batches(4))
    twin, other = copy.deepcopy((model, optimizer))
    assert torch.equal(train(twin, other, tiny_batches(3)), train(model, optimizer, tiny_batches(3)))


FOREIGN = {
    "float32": ({"state_dtype": "float32"}, lambda state: None, "state_dtype is float32, not int8"),
    "bfloat16": ({"state_dtype": "bfloat16"}, lambda state: None, "state_dtype is bfloat16, not int8"),
    "no scale": ({}, lambda s: s["state"][1].pop(blockwise.SCALE), r"exp_avg_scale is missing, not \(81, 1\)"),
    "scale nan": ({}, lambda s: s["state"][1][blockwise.SCALE].fill_(torch.nan), "exp_avg_scale of .* is not finite"),
    "signed": (
        {},
        lambda s: s["state"][1].update(exp_avg=s["state"][1]["exp_avg"].char()),
        "exp_avg is int8, not uint8",
    ),
    "other blocks": (
        {},
        lambda s: s["state"][1].update({blockwise.SCALE: torch.zeros(81, 2)}),
        r"exp_avg_scale is \(81, 2\), not \(81, 1\)",
    ),
}


@pytest.mark.parametrize(("knobs", "change", "message"), FOREIGN.values(), ids=FOREIGN)
def test_a_state_that_does_not_fit_is_refused(knobs, change, message):
    state = copy.deepcopy(trained(**knobs)[1].state_dict())
    change(state)
    refused(state, message)


def test_a_state_in_codes_is_refused_elsewhere():
    state = trained()[1].state_dict()
    refused(state, "state_dtype is int8, not float32", state_dtype="float32")
    refused(state, "state_dtype is int8, not bfloat16", state_dtype="bfloat16")


def trained(**knobs):
    model, optimizer = build(**knobs)
    train(model, optimizer, tiny_batches(2))
    return model, optimizer


def refused(state, message, **knobs):
    model, optimizer = trained(**knobs)
    before = copied(optimizer)
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(state)
    assert_equal_states(copied(optimizer), before)
    train(model, optimizer, tiny_batches(1))


# What is refused


def test_rotated_second_moments_are_refused_with_a_reason():
    with pytest.raises(
        ValueError, match="int8 keeps the momentum alone .* use second_moment=factors, or state_dtype=b"
    ):
        build(structure="kronecker", second_moment="rotated")


RELATIVES = {
    SIRFShampoo: "state_dtype must be one of 'float32', 'bfloat16', got 'int8'",
    FAdam: "unknown .*state_dtype.*, which is an option of AdaFisher and SIRFShampoo",
    AdamQLR: "unknown .*state_dtype.*, which is an option of AdaFisher and SIRFShampoo",
}


@pytest.mark.parametrize("cls", RELATIVES)
def test_relatives_have_no_eight_bits_and_say_so(cls):
    with pytest.raises((TypeError, ValueError), match=RELATIVES[cls]):
        cls(nn.Linear(64, 64), state_dtype="int8")


def test_without_the_library_one_error_says_what_to_install(monkeypatch):
    """Or one that is too old; before anything is trained. Counting the state needs no library."""
    monkeypatch.setattr(blockwise, "library", blockwise.library.__wrapped__)  # which remembers that it is there
    monkeypatch.setattr(bitsandbytes, "__version__", "0.49.2")
    with pytest.raises(ImportError, match=r"bitsandbytes 0.50 or newer, not 0.49.2: pip .* 'adafisher-hf\[int8\]'"):
        build()
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ImportError, match=r"which is not installed: pip install --upgrade 'adafisher-hf\[int8\]'"):
        build()
    build(state_dtype="bfloat16")
    with torch.device("meta"):
        model = Wide()
    AdaFisherW(model, state_dtype="int8").init_state()


def test_the_library_is_imported_when_it_is_asked_for():
    code = """
import sys, torch
from adafisher_hf import AdaFisherW
for state_dtype in ("float32", "bfloat16", "int8"):
    layer = torch.nn.Linear(64, 64)
    optimizer = AdaFisherW(layer, state_dtype=state_dtype)
    layer(torch.ones(1, 64)).sum().backward()
    optimizer.step()
    assert ("bitsandbytes" in sys.modules) == (state_dtype == "int8"), state_dtype
"""
    subprocess.run([sys.executable, "-c", code], check=True)
