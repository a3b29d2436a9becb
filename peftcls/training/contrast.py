"""Few rows: the adapter learns by contrast, and the head is a linear probe of what it has learnt.

The states of rows with one label come near each other, those of other labels move away. With a few
rows of each label this teaches more than the loss of the labels, since every pair of rows counts.
Supervised contrastive learning: Khosla et al. 2020, equation 2. To fit a linear head to a base that
has learnt so from few rows is the way of SetFit: Tunstall et al. 2022, "Efficient Few-Shot Learning
Without Prompts", section 3; there the whole base learns, here the adapter.
"""

import torch
from torch.nn import functional as F

from peftcls.engine.batch import Batch
from peftcls.engine.head_inputs import head_layer, recording
from peftcls.engine.head_logits import mean_of_windows
from peftcls.engine.model_state import state_of
from peftcls.tasks.base import Task
from peftcls.training.head_start import trains_only
from peftcls.training.linear_probe import classes_of

TEMPERATURE = 0.1


def can_contrast(model: torch.nn.Module, task: Task) -> bool:
    """Whether a model can learn so.

    Each row has one label and no weight, the head is new, and something is trained below it.
    """
    layer = head_layer(model)
    has_probe = type(task).loss_of_logits is not Task.loss_of_logits
    if task.weight is not None or layer is None or task.answer_kind != "label" or not has_probe:
        return False
    return state_of(model).head_is_new and not trains_only(model, layer)


def contrastive_loss(states: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """The mean loss of the rows that have another one of their class beside them.

    Args:
        states: of shape (rows, width).
        classes: of shape (rows,).
    """
    directions = F.normalize(states, dim=1)
    similarities = directions @ directions.T / TEMPERATURE
    itself = torch.eye(len(states), dtype=torch.bool, device=states.device)
    log_shares = similarities.masked_fill(itself, -torch.inf).log_softmax(1)
    is_same = (classes.unsqueeze(0) == classes.unsqueeze(1)) & ~itself
    counts = is_same.sum(1)
    by_row = -log_shares.masked_fill(~is_same, 0.0).sum(1) / counts.clamp(min=1)
    return by_row.sum() / (counts > 0).sum().clamp(min=1)


def contrastive_loss_of_batch(model: torch.nn.Module, task: Task, batch: Batch) -> torch.Tensor:
    """The loss of what the head reads of the rows of a batch."""
    layer = head_layer(model)
    assert layer is not None, "the model was found to have one"
    with recording(layer, detached=False) as recorded:
        task.raw_logits(model, batch)
    assert recorded.inputs is not None, "the head has computed"
    states = recorded.inputs.float()
    if "windows" in batch:
        states = mean_of_windows(states, batch["windows"])
    classes = classes_of(batch["target"])
    assert classes is not None, "each row has one label"
    return contrastive_loss(states, classes)
