"""A rank that dies in the middle of training: the others end with an error, and the last checkpoint goes on."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from transformers import TrainerCallback

from tests.distributed.fsdp_on_cpu import allow_fsdp_on_cpu
from tests.distributed.ranks import run_ranks, start_ranks
from tests.distributed.test_fsdp_trainer import LAYERS, train

KILLED_AT = 5  # checkpoints are at 2 and 4
STEPS = 6
SETTINGS = {"ddp": None, "fsdp": {**LAYERS, "state_dict_type": "SHARDED_STATE_DICT"}}


class Kill(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == KILLED_AT - 1:
            os.kill(os.getpid(), signal.SIGKILL)


def on_rank(rank, folder, fsdp_config, killed):
    allow_fsdp_on_cpu()
    callbacks = [Kill()] if killed and rank == 1 else []
    resume = not killed
    return train(folder, 2, "", fsdp_config, steps=STEPS, resume=resume, save=True, callbacks=callbacks)[0]


@pytest.mark.parametrize("name", SETTINGS)
def test_the_others_end_and_the_checkpoint_goes_on(tmp_path, name):
    folder = str(tmp_path / "shared")
    codes = start_ranks(2, on_rank, folder, SETTINGS[name], True, folder=str(tmp_path), timeout=100)
    assert codes[1] == -signal.SIGKILL
    assert codes[0] not in (0, None), "the other rank did not notice, or hung"
    alone, _ = train(tmp_path / "alone", 1, steps=STEPS)
    for result in run_ranks(2, on_rank, folder, SETTINGS[name], False):
        torch.testing.assert_close(result, alone, rtol=1e-6, atol=1e-9)
