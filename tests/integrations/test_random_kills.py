"""A run that is killed at random moments, and goes on from its last complete checkpoint, ends in the same bits."""

from __future__ import annotations

import gc
import itertools
import random
import shutil
import signal
import tempfile
import time
from pathlib import Path

import pytest
import torch
from transformers import Trainer

from adafisher_hf import AdaFisherTrainer
from adafisher_hf.integrations.checkpoints import is_complete, last_complete
from tests.integrations.test_resume import DIAGONAL, KRONECKER, assert_same, result, trainer_of
from tests.models import llama

STEPS = 24
SETTINGS = {
    "diagonal": dict(cls=Trainer, optim_args=DIAGONAL),
    "kronecker": dict(cls=AdaFisherTrainer, optim_args=KRONECKER),
}


def trained(folder, setting):
    """Trains to the end as a user's script would: from the last complete checkpoint, where there is one."""
    going_on = last_complete(folder) is not None
    # Of a model that goes on nothing is its own; dropout asks for the state of the random numbers too.
    model = llama(seed=5 if going_on else 0, attention_dropout=0.1)
    trainer = trainer_of(folder, model, max_steps=STEPS, save_steps=2, save_total_limit=2, **SETTINGS[setting])
    trainer.train(resume_from_checkpoint=going_on or None)
    return result(trainer)


def in_a_process(folder, setting):
    torch.set_num_threads(1)
    gc.freeze()
    trained(folder, setting)


def cut_short(folder):
    """The files of the newest checkpoint and when each was written; None where it is complete."""
    newest = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]), default=None)
    if newest is None or is_complete(newest):
        return None
    return {file.name: file.stat().st_mtime_ns for file in newest.iterdir()}


def kill(start, folder, setting, delay):
    """Whether a run was killed before it ended, and whether in the middle of a save."""
    before = cut_short(folder)  # by an earlier kill
    process = start(in_a_process, folder, setting)
    process.join(delay)
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0, cut_short(folder) not in (None, before)


def duration(start, folder):
    """Seconds of a process that trains to the end."""
    began = time.monotonic()
    process = start(in_a_process, folder, "diagonal")
    process.join()
    assert process.exitcode == 0
    return time.monotonic() - began


def gone_on(folder, setting):
    """The end of a run that is killed no more; the folder stays as it is."""
    copy = shutil.copytree(folder, f"{folder}-copy")
    end = trained(copy, setting)
    shutil.rmtree(copy)
    return end


@pytest.fixture
def quick_training():
    """The Trainer collects garbage before it trains, which takes longer than the training: imports are left out."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("quick_training")
@pytest.mark.parametrize("kills", [5, pytest.param(100, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_every_killed_run_ends_in_the_same_bits(tmp_path, start, kills):
    """A fifth of the kills at least come in the middle of a save. Most runs are killed more than once."""
    expected = {setting: trained(tmp_path / setting, setting) for setting in SETTINGS}
    _, whole = (duration(start, tmp_path / run) for run in ("imports", "whole"))
    chance, settings = random.Random(kills), itertools.cycle(SETTINGS)
    killed = in_a_save = 0
    ended = True
    while killed < kills or in_a_save < kills // 5:
        assert killed < kills + 30, f"only {in_a_save} of {killed} kills came in the middle of a save"
        if ended:
            folder, setting = Path(tempfile.mkdtemp(dir=tmp_path)), next(settings)
        early, saving = kill(start, folder, setting, chance.uniform(0.0, whole))
        ended = not early
        if early:
            killed, in_a_save = killed + 1, in_a_save + saving
            assert_same(expected[setting], gone_on(folder, setting))
