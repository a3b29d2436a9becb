"""The public names, each from its module; `peftcls` hands them on when one is asked for."""

from peftcls.adapt import attach_lora, train_only
from peftcls.card import write_card
from peftcls.check import check_rows
from peftcls.config import TrainConfig
from peftcls.doctor.examine import examine_rows
from peftcls.doctor.findings import Examination, Finding
from peftcls.evaluation import compare_answers, evaluate_answers
from peftcls.folds import cross_validate
from peftcls.learning_on import learn_on, side_by_side, with_replay
from peftcls.many import ManyPredictor
from peftcls.merge import merge_adapter
from peftcls.models import attention_projections, head_modules, load_base
from peftcls.predictor import Predictor, load_predictor
from peftcls.rows import RowError, read_rows
from peftcls.sharing import share_base
from peftcls.sweeps import Trained, sweep
from peftcls.tasks.base import Answer, Task
from peftcls.tasks.classification import Classification
from peftcls.tasks.decisions import Decisions
from peftcls.tasks.extractive_qa import ExtractiveQA
from peftcls.tasks.instruction import Instruction
from peftcls.tasks.regression import Regression
from peftcls.trainer import Trainer

__all__ = ["Answer", "Classification", "Decisions", "Examination", "ExtractiveQA", "Finding", "Instruction", "ManyPredictor", "Predictor",
           "Regression", "RowError", "Task", "TrainConfig", "Trained", "Trainer", "attach_lora", "attention_projections", "check_rows",
           "compare_answers", "cross_validate", "evaluate_answers", "examine_rows", "head_modules", "learn_on", "load_base",
           "load_predictor", "merge_adapter", "read_rows", "share_base", "side_by_side", "sweep", "train_only", "with_replay", "write_card"]
