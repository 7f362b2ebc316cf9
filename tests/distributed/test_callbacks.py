"""CurvatureCallback under FSDP2: every rank takes part in the sums, one writes, the lines are those of one process."""

import json

import pytest

from adafisher_hf import CurvatureCallback
from tests.distributed.fsdp_on_cpu import allow_fsdp_on_cpu
from tests.distributed.ranks import run_ranks
from tests.distributed.test_fsdp_trainer import LAYERS, train


def on_two_ranks(rank, folder):
    allow_fsdp_on_cpu()
    train(folder / "two", 2, fsdp_config=LAYERS, callbacks=[CurvatureCallback()])


def lines(folder):
    return [json.loads(line) for line in (folder / "curvature.jsonl").read_text().splitlines()]


def test_lines_of_two_ranks_are_those_of_one(tmp_path):
    run_ranks(2, on_two_ranks, tmp_path)
    train(tmp_path / "one", 1, callbacks=[CurvatureCallback()])
    one, two = lines(tmp_path / "one"), lines(tmp_path / "two")
    assert [line["step"] for line in two] == [2, 4]
    for a, b in zip(one, two, strict=True):
        for name, row in a["parameters"].items():
            other = b["parameters"][name]
            assert other.pop("kind") == row.pop("kind")
            # Not the mean: it carries the scale of the loss, which is that of a rank.
            assert other.pop("mean") > 0 and row.pop("mean") > 0
            assert other == pytest.approx(row, rel=1e-5), name
    assert (tmp_path / "one/coverage.json").read_text() == (tmp_path / "two/coverage.json").read_text()
