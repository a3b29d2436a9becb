"""Parameter-efficient fine-tuning of pretrained transformers for classification-like tasks."""

import logging

# bitsandbytes warns on every import that an optional kernel from a hub is not there; nothing here needs it.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
# In 8 bits every layer would say at every step that it narrows its inputs, which is what 8 bits are.
logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)

from peftcls.adapt import attach_lora, train_only
from peftcls.check import check_rows
from peftcls.doctor import examine_rows
from peftcls.evaluation import compare_answers, evaluate_answers
from peftcls.findings import Examination, Finding
from peftcls.folds import cross_validate
from peftcls.learning_on import learn_on, side_by_side, with_replay
from peftcls.models import attention_projections, head_modules, load_base
from peftcls.predictor import Predictor, load_predictor
from peftcls.rows import RowError, read_rows
from peftcls.tasks.base import Answer, Task
from peftcls.tasks.classification import Classification
from peftcls.tasks.decisions import Decisions
from peftcls.tasks.extractive_qa import ExtractiveQA
from peftcls.tasks.instruction import Instruction
from peftcls.tasks.regression import Regression
from peftcls.trainer import TrainConfig, Trainer

__version__ = "0.1.0"
__all__ = ["Answer", "Classification", "Decisions", "Examination", "ExtractiveQA", "Finding", "Instruction", "Predictor", "Regression",
           "RowError", "Task", "TrainConfig", "Trainer", "attach_lora", "attention_projections", "check_rows", "compare_answers",
           "cross_validate", "evaluate_answers", "examine_rows", "head_modules", "learn_on", "load_base", "load_predictor", "read_rows",
           "side_by_side", "train_only", "with_replay"]
