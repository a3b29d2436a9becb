"""The start of a new head, or of a label's row in the output layer: a linear probe of the base.

Linear probing, then fine-tuning: Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features
and Underperform Out-of-Distribution", section 3.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast, gather_object
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from peftcls.engine.batch import INPUTS, Batch
from peftcls.engine.batching import micro_batches
from peftcls.engine.frozen_layers import using_cached_states
from peftcls.engine.head_inputs import Recorded, head_layer, recording
from peftcls.engine.head_logits import mean_of_windows
from peftcls.engine.kernels import batch_tokens
from peftcls.engine.layers import evaluation_mode
from peftcls.engine.model_state import state_of, unwrapped
from peftcls.engine.pair_features import importance
from peftcls.engine.probes import can_pack
from peftcls.engine.sharding import watching_others
from peftcls.models.label_layer import LabelLayer, find_label_layer
from peftcls.tasks.base import Task
from peftcls.tasks.encoding import EncodedTable
from peftcls.tasks.extractive_qa import ExtractiveQA
from peftcls.training.linear_probe import ROW, Examples, LossSum, classes_of, fit_probe
from peftcls.training.span_start import questions_to_read, span_examples, span_loss

# Of the random weights of a new layer, where a config names none.
USUAL_DEVIATION = 0.02
SMALLEST_SIZE = 1e-12
MAX_LABELS_TO_SHRINK = 16
"""Tables of 2 to 6 labels got better by a small head, one of 90 labels got worse."""
MAX_VALUES = 2**27
"""Of the states of all rows together, one GiB: 350,000 rows for a base of width 384."""
Read = Callable[[Recorded, Batch], tuple[torch.Tensor, Batch]]


def start_from_probe(
    model: torch.nn.Module,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    table: EncodedTable,
    seed: int,
) -> bool:
    """Give what is new in a model the weights of a linear probe of the model as it is.

    That is a new head, or the labels' rows of a `LabelLayer`. Every process fits the same states;
    the weights of the main process are used, so that rounding cannot part them.

    Args:
        model: with its adapter, or with a part of it trained.
        task: what the rows mean.
        tokenizer: pads them.
        table: the training rows, with their targets. Of a long table a sample is read.
        seed: of the sample, and of the folds that choose the penalty.

    Returns:
        Whether it has them. If not, nothing is new, or the head is no single linear layer, or the
        states of the base are not finite.
    """
    labels = find_label_layer(model, task, tokenizer)
    if labels is not None:
        return _start_label_layer(model, task, tokenizer, table, labels, seed)
    layer = head_layer(model)
    if layer is None or not state_of(model).head_is_new:
        return False
    has_loss = type(task).loss_of_logits is not Task.loss_of_logits
    if not has_loss and not isinstance(task, ExtractiveQA):
        return False
    return _start_head(model, task, tokenizer, table, layer, seed)


def shrink_head(model: torch.nn.Module, task: Task) -> None:
    """Make the weights of a head as small as random ones would be; their direction stays.

    The weights of a probe are ten to a hundred times as large. Each step of the adapter would then
    change the logits so much that it fits the training rows before the features are any better. A
    head that finds answers in texts stays large: each question tells much less than a label does of
    a whole text, and training begins faster so. So does a head for many labels: each has few rows,
    and from small weights the head itself would need most of the steps.

    Args:
        model: whose head has begun as a probe. One without a head, or that trains nothing else,
            stays as it is.
        task: what the rows mean.
    """
    layer = head_layer(model)
    if layer is None or isinstance(task, ExtractiveQA) or trains_only(model, layer):
        return
    if layer.out_features > MAX_LABELS_TO_SHRINK:
        return
    config: Any = unwrapped(model).config
    random_size = getattr(config, "initializer_range", USUAL_DEVIATION) * layer.in_features**0.5
    with torch.no_grad():
        size = layer.weight.norm(dim=1).mean()
        share = float((random_size / size.clamp(min=SMALLEST_SIZE)).clamp(max=1.0))
        for parameter in layer.parameters():
            parameter.mul_(share)


def trains_only(model: torch.nn.Module, layer: torch.nn.Module) -> bool:
    """Whether nothing of a model is trained but one layer."""
    own = {id(parameter) for parameter in layer.parameters()}
    return all(id(p) in own for p in model.parameters() if p.requires_grad)


# Heads


def _start_head(
    model: torch.nn.Module,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    table: EncodedTable,
    layer: torch.nn.Linear,
    seed: int,
) -> bool:
    read: Read = _head_examples
    rows = rows_to_read(table, layer.in_features, seed)
    loss_sum: LossSum = task.loss_of_logits
    if isinstance(task, ExtractiveQA):
        read = functools.partial(_span_examples, unanswerable=bool(task.unanswerable))
        rows = questions_to_read(table, layer.in_features, seed)
        loss_sum = span_loss
    examples = _read_examples(
        model,
        task,
        tokenizer,
        table,
        layer,
        forward=lambda batch: task.raw_logits(model, batch),
        read=read,
        rows=rows,
    )
    return _fit_layer(layer, examples, loss_sum, seed)


def _fit_layer(layer: torch.nn.Linear, examples: Examples, loss_sum: LossSum, seed: int) -> bool:
    """Fit a layer to examples. Returns False where their states are not finite."""
    if not bool(examples.states.isfinite().all()):
        return False
    has_bias = layer.bias is not None
    probe = fit_probe(examples, loss_sum, layer.out_features, has_bias=has_bias, seed=seed)
    with torch.no_grad():
        layer.weight.copy_(probe.weight)
        if probe.bias is not None:
            layer.bias.copy_(probe.bias)
        for parameter in layer.parameters():
            broadcast(parameter.data)
    return True


def _head_examples(recorded: Recorded, batch: Batch) -> tuple[torch.Tensor, Batch]:
    """States of shape (rows, width): those of a row's windows are averaged, as its logits are."""
    assert recorded.inputs is not None, "the head has computed"
    states = recorded.inputs.double().cpu()
    if "windows" in batch:
        states = mean_of_windows(states, batch["windows"].cpu())
    targets = {
        name: tensor.cpu() for name, tensor in batch.items() if name not in (*INPUTS, "windows")
    }
    return states, targets


def _span_examples(
    recorded: Recorded, batch: Batch, *, unanswerable: bool
) -> tuple[torch.Tensor, Batch]:
    assert recorded.inputs is not None, "the head has computed"
    return span_examples(recorded.inputs, batch, unanswerable=unanswerable)


# Labels in the output layer of a language model


def _start_label_layer(
    model: torch.nn.Module,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    table: EncodedTable,
    labels: LabelLayer,
    seed: int,
) -> bool:
    """Fit what is added to the logits of the labels' tokens, and put it into the adapter.

    The logits of all other tokens stay as they are, so that the loss is convex in what is added.
    """
    token_ids = torch.tensor(labels.token_ids)

    def read(recorded: Recorded, batch: Batch) -> tuple[torch.Tensor, Batch]:
        return _label_examples(recorded, batch, token_ids, labels.depth)

    examples = _read_examples(
        model,
        task,
        tokenizer,
        table,
        labels.layer,
        forward=lambda batch: task.loss_sum(model, batch),
        read=read,
        rows=rows_to_read(table, labels.layer.in_features, seed),
    )
    if not bool(examples.states.isfinite().all()):
        return False
    probe = fit_probe(examples, _label_loss, len(token_ids), has_bias=False, seed=seed)
    labels.set_rows(probe.weight)
    for parameter in labels.parameters():
        broadcast(parameter.data)
    return True


def _label_examples(
    recorded: Recorded, batch: Batch, token_ids: torch.Tensor, depth: int
) -> tuple[torch.Tensor, Batch]:
    """What the output layer reads where each row's label is decided, and the logits it gives there.

    The layer computes the positions of all answers, row by row; the label is decided at the one
    that is `depth` tokens behind the first.
    """
    assert recorded.inputs is not None, "the output layer has computed"
    assert recorded.outputs is not None, "the output layer has computed"
    supervised = batch["supervised"]
    counts = supervised.sum(1)
    places = (counts.cumsum(0) - counts).cpu() + depth
    states = recorded.inputs.flatten(0, -2)[places].double().cpu()
    logits = recorded.outputs.flatten(0, -2)[places].double().cpu()
    next_ids = batch["input_ids"].roll(-1, dims=1)[supervised].cpu()[places]
    others = logits.clone()
    others[:, token_ids] = -torch.inf
    targets = {
        "given": logits[:, token_ids],
        "others": others.logsumexp(1, keepdim=True),
        "target": (next_ids.unsqueeze(1) == token_ids).long().argmax(1),
    }
    return states, targets


def _label_loss(added: torch.Tensor, targets: Batch) -> torch.Tensor:
    logits = torch.cat([targets["given"] + added, targets["others"]], 1)
    return F.cross_entropy(logits, targets["target"], reduction="sum")


# Reading


def rows_to_read(table: EncodedTable, width: int, seed: int) -> list[int] | None:
    """A random sample of the rows of a table whose states do not fit into memory; None for all."""
    count = MAX_VALUES // width
    if len(table.lengths) <= count:
        return None
    chosen = np.random.default_rng(seed).choice(len(table.lengths), count, replace=False)
    rows: list[int] = np.sort(chosen).tolist()
    return rows


@torch.no_grad()
def _read_examples(
    model: torch.nn.Module,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    table: EncodedTable,
    layer: torch.nn.Module,
    *,
    forward: Callable[[Batch], Any],
    read: Read,
    rows: Sequence[int] | None = None,
) -> Examples:
    """Run rows through a model, all unless given; read what a layer got of each, in their order.

    Each process computes its share of the micro-batches; all get the whole.
    """
    processes = PartialState()
    device = next(model.parameters()).device
    plan = micro_batches(
        range(len(table.lengths)) if rows is None else rows,
        table.lengths,
        tokens=batch_tokens(device),
        packed=can_pack(model),
    )
    parts: list[tuple[torch.Tensor, torch.Tensor, Batch]] = []
    own = plan[processes.process_index :: processes.num_processes]
    shares = state_of(model).shares
    with evaluation_mode(model), watching_others(shares, "the start of the head"):
        for part in own if shares is None else shares.padded(own):
            indices = plan[0] if part is None else part
            collated = task.collate(table.take(indices), tokenizer)
            batch = {name: tensor.to(device) for name, tensor in collated.items()}
            with using_cached_states(model, batch) as used, recording(layer) as recorded:
                forward(used)
            if part is None:
                # It was computed for the sake of other processes, which have more.
                continue
            states, targets = read(recorded, used)
            row_of = torch.tensor(indices)
            if ROW in targets:
                row_of = row_of[targets[ROW]]
            parts.append((row_of, states, targets))
    if processes.num_processes > 1:
        parts = gather_object(parts)
    row_of = torch.cat([part for part, _, _ in parts])
    order = row_of.argsort(stable=True)
    states = torch.cat([part for _, part, _ in parts])[order]
    targets = {name: torch.cat([part[name] for _, _, part in parts])[order] for name in parts[0][2]}
    if ROW in targets:
        targets[ROW] = row_of[order].unique(return_inverse=True)[1]
    compares = task.pooling == "compare"
    sizes = importance(states.shape[1]) if compares else None
    return Examples(states, targets, classes_of(targets.get("target")), sizes)
