"""`train.py`, killed (SIGKILL) after a step: `killed_run.py FOLD STEP RANK [arguments]`. See test_proofs.py."""

import os
import signal
import sys

from transformers import TrainerCallback

from lascl import LaSCLTrainer, train
from lascl.training import fold as fold_module


fold, step, rank = sys.argv[1:4]


class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if f"fold-{fold}" in args.output_dir and state.global_step == int(step) and os.environ.get("RANK", "0") == rank:
            os.kill(os.getpid(), signal.SIGKILL)


class KilledTrainer(LaSCLTrainer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.add_callback(Kill())


fold_module.LaSCLTrainer = KilledTrainer
train.main(sys.argv[4:])
