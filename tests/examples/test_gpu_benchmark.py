"""examples/benchmarks/gpu.py: a dry run on the CPU, so that it runs where a GPU is at hand."""

from __future__ import annotations

import pytest
import torch

from benchmarks import gpu

TINY = ["--device", "cpu", "--hidden_size", 32, "--num_hidden_layers", 1, "--vocab_size", 64, "--batch_size", 2]
EAGER = ["tf32", "fp16, scaled"]


def run(capsys, *flags):
    gpu.main([str(flag) for flag in (*TINY, "--block_size", 16, "--steps", 2, *flags)])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_every_setting_and_optimizer_has_a_row(capsys):
    rows = run(capsys, "--settings", *EAGER)
    assert [row[:2] for row in rows] == [[setting, arm.name] for setting in EAGER for arm in gpu.ARMS]
    for row in rows:
        assert float(row[2]) > 0 and float(row[4]) > 0
        assert row[5] == ""  # the CPU does not say how much memory was in use
        assert float(row[8]) < 4.15  # nats: less than log 64
    states = {tuple(row[:2]): float(row[7]) for row in rows}
    assert states["tf32", "AdamW, fused"] == pytest.approx(8, abs=0.1)
    assert 4 < states["tf32", "AdaFisherW"] < 5
    assert states["tf32", "AdaFisherW"] - states["tf32", "AdaFisherW, bf16 momentum"] == pytest.approx(2, abs=0.1)


@pytest.mark.slow
def test_all_other_settings(capsys):
    names = [setting.name for setting in gpu.SETTINGS if setting.name not in EAGER]
    assert len(run(capsys, "--settings", *names)) == len(names) * len(gpu.ARMS)


def test_without_a_device_it_says_so(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    gpu.main([])
    assert capsys.readouterr().out == "no CUDA device: nothing to measure (--device cpu is a dry run)\n"


def test_what_does_not_fit_is_a_row_too(capsys, monkeypatch):
    def measure(arm, setting, args):
        if arm is not gpu.ADAMW:
            return gpu.Measured(dense=0.2, sparse=0.1, peak=2**30, state=8, parameters=4, loss=1.0)
        raise torch.OutOfMemoryError

    monkeypatch.setattr(gpu, "measure", measure)
    first, second, *_ = run(capsys, "--settings", "tf32")
    assert first == ["tf32", "AdamW, fused", "out of memory", "", "", "", "", "", ""]
    assert second == ["tf32", "AdaFisherW", "100.0", "", "200.0", "1.00", "", "2.00", "1.000"]


def test_dense_and_sparse_steps_are_told_apart(monkeypatch):
    """A clock that runs by one second in each step of the warm-up, and by a tenth after it."""
    args = gpu_arguments()
    clock = iter([*range(gpu.WARMUP), *(gpu.WARMUP - 1 + 0.1 * k for k in range(1, args.steps + 1))])
    monkeypatch.setattr(gpu.time, "perf_counter", lambda: next(clock))
    measured = gpu.measure(gpu.ADAMW, gpu.SETTINGS[0], args)
    assert (measured.dense, measured.sparse) == (pytest.approx(1.0), pytest.approx(0.1))


def gpu_arguments():
    import argparse

    return argparse.Namespace(
        device="cpu", hidden_size=32, num_hidden_layers=1, vocab_size=64, batch_size=2, block_size=16, steps=3
    )
