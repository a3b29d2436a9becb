"""Started by torchrun on processes that hold a base in shares; something goes wrong in one."""

import os
import signal
import sys
from pathlib import Path

import torch

import peftcls
from peftcls.engine import lost_processes

base, out, rows_file, fault = sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4]
FAULT_AT = int(sys.argv[5]) if len(sys.argv) > 5 else 3
if fault == "stalls":
    lost_processes.STALL_SECONDS, lost_processes.STALL_FACTOR = 2.0, 1.0
torch.set_num_threads(1)
rank, rows = int(os.environ["RANK"]), peftcls.read_rows(rows_file)
task = peftcls.Classification(max_length=64).learn(rows)
model, tokenizer = peftcls.load_base(base, task, dtype=torch.float64, shard=True)
model = peftcls.attach_lora(model, task, rank=4).double()
config = peftcls.TrainConfig(
    out, epochs=2, batch_size=6, eval_every=2, learning_rate=1e-2, head_init="random"
)
trainer = peftcls.Trainer(model, task, tokenizer, config)
plain = task.loss_sum


def loss_sum(model, batch):
    """In the second process, at one step, once."""
    if torch.is_grad_enabled() and rank == 1 and trainer.progress.step == FAULT_AT:
        match fault:
            case "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "stalls":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "no_memory":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried.")
            case "raises":
                raise KeyError("a strange answer in row 7")
            case "calls_once_more":
                trainer.shares.calls += 1
    return plain(model, batch)


decode = trainer.task.decode


def stop(*arguments):
    """In the second process, in the second evaluation."""
    if trainer.progress.step > FAULT_AT:
        os.kill(os.getpid(), signal.SIGSTOP)
    return decode(*arguments)


evaluates = fault == "stalls_in_evaluation"
if rank == 1 and evaluates:
    object.__setattr__(trainer.task, "decode", stop)
if rank == 1:
    object.__setattr__(trainer.gradients.task, "loss_sum", loss_sum)
if fault == "dry_run":
    before = {name: parameter.detach().clone() for name, parameter in trainer.parameters.items()}
    print(trainer.dry_run(rows))
    assert all(torch.equal(before[name], found) for name, found in trainer.parameters.items())
    assert not out.exists()
    # The first process makes the folder next; the others have to have looked before.
    torch.distributed.barrier()
trainer.fit(rows, rows if evaluates else None, resume=True)
