"""Stands in for a training: python launcher.py FOLDER SCRIPT ARGS, without torch, and what it does is in the rate.

A rate below 1 gives a run whose loss is lowest at 1e-3; 1 raises, 2 ends without a training, 3 is killed, 4 sleeps, and
5 raises when the training is done. FAKE_SECONDS is how long it takes.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from pathlib import Path

folder, script, *args = sys.argv[1:]
flags = dict(zip(args[::2], args[1::2], strict=True))
lr, seed = float(flags["--learning_rate"]), int(flags["--seed"])
print("trains with", flags["--optim"], flush=True)
time.sleep(float(os.environ.get("FAKE_SECONDS", 0)))
output = Path(flags["--output_dir"])
output.mkdir()
(output / "model.safetensors").write_bytes(b"0" * 1000)
(output / "adafisher_config.json").write_text('{"version": 1}')
if lr == 1:
    raise ValueError("no such data\nlook elsewhere")
if lr == 2:
    sys.exit()
if lr == 3:
    os.kill(os.getpid(), signal.SIGKILL)
if lr == 4:
    time.sleep(60)
loss = abs(math.log10(lr) + 3) + seed + (flags["--optim"] == "adafisherw")
evaluations = [[step, float(step), {"eval_loss": loss + 10 - step}] for step in range(1, 11)]
record = {"steps": 10, "seconds": 10.0, "evaluations": evaluations, "state_bytes": 80, "trained": 10}
(Path(folder) / "record.json").write_text(json.dumps(record))
history = [{"step": step, **metrics} for step, _, metrics in evaluations]
state = {"global_step": 10, "max_steps": 10, "log_history": history}
(Path(folder) / "trainer_state.json").write_text(json.dumps(state))
if lr == 5:
    raise RuntimeError("no room for the model")
