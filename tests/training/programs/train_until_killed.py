"""Train with dropout; killed from inside at a given step, as by `kill -9`, or never."""

import os
import signal
import sys

import peftcls
from peftcls.training.gradient_accumulation import GradientAccumulator

base, out, rows_file, killed_at = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])


class MortalGradients(GradientAccumulator):
    """Ends without a word in the middle of a step."""

    def sum_over_processes(self, numbers, step):
        if step == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().sum_over_processes(numbers, step)


rows = peftcls.read_rows(rows_file)
task = peftcls.Classification(max_length=64).learn(rows)
model, tokenizer = peftcls.load_base(base, task)
model = peftcls.attach_lora(model, task, rank=4, dropout=0.3)
config = peftcls.TrainConfig(
    out,
    epochs=2,
    batch_size=4,
    micro_batch_size=2,
    eval_every=3,
    learning_rate=1e-2,
    head_init="random",
)
with peftcls.Trainer(model, task, tokenizer, config) as trainer:
    trainer.gradients.__class__ = MortalGradients
    trainer.fit(rows, rows, resume=True)
