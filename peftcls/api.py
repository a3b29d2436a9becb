"""The public names, each imported from its module; `import peftcls` loads them on demand."""

from peftcls.data.reading import RowError, read_rows
from peftcls.engine.fast_paths import FastPaths
from peftcls.evaluation import compare_answers, evaluate_answers
from peftcls.inference.loading import load_predictor
from peftcls.inference.multi_predictor import ManyPredictor
from peftcls.inference.onnx_export import OnnxExport, export_onnx
from peftcls.inference.passages import PassageAnswer, Passages
from peftcls.inference.predictor import Predictor
from peftcls.logs import set_quiet
from peftcls.models.adapter_start import attach_adapter
from peftcls.models.base_model import load_base
from peftcls.models.lora_injection import attach_lora
from peftcls.models.merging import merge_adapter
from peftcls.models.model_card import write_card
from peftcls.models.structure import attention_projections, head_modules
from peftcls.models.trainable import train_only
from peftcls.models.weight_sharing import share_base
from peftcls.quality.examine import examine_rows
from peftcls.quality.findings import Examination, Finding
from peftcls.tasks.answer_columns import answers_frame
from peftcls.tasks.answers import Answer
from peftcls.tasks.base import Task
from peftcls.tasks.classification import Classification
from peftcls.tasks.decisions import Decisions
from peftcls.tasks.extractive_qa import ExtractiveQA
from peftcls.tasks.instruction import Instruction
from peftcls.tasks.label_renaming import with_label_names
from peftcls.tasks.regression import Regression
from peftcls.tasks.row_checks import check_rows
from peftcls.training.config import TrainConfig
from peftcls.training.continual import compare_scores, learn_on, with_replay
from peftcls.training.continual import side_by_side as side_by_side  # deprecated
from peftcls.training.cross_validation import cross_validate
from peftcls.training.planning import plan_memory
from peftcls.training.search import search
from peftcls.training.sweep import Trained, sweep
from peftcls.training.trainer import Trainer

__all__ = [
    "Answer",
    "Classification",
    "Decisions",
    "Examination",
    "ExtractiveQA",
    "FastPaths",
    "Finding",
    "Instruction",
    "ManyPredictor",
    "OnnxExport",
    "PassageAnswer",
    "Passages",
    "Predictor",
    "Regression",
    "RowError",
    "Task",
    "TrainConfig",
    "Trained",
    "Trainer",
    "answers_frame",
    "attach_adapter",
    "attach_lora",
    "attention_projections",
    "check_rows",
    "compare_answers",
    "compare_scores",
    "cross_validate",
    "evaluate_answers",
    "examine_rows",
    "export_onnx",
    "head_modules",
    "learn_on",
    "load_base",
    "load_predictor",
    "merge_adapter",
    "plan_memory",
    "read_rows",
    "search",
    "set_quiet",
    "share_base",
    "sweep",
    "train_only",
    "with_label_names",
    "with_replay",
    "write_card",
]
