"""A model with its head as one ONNX graph: written by PyTorch, run by onnxruntime."""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from peftcls.engine.batch import INPUTS, Batch
from peftcls.engine.head_logits import decoder_states, head_of, marked_token, pool
from peftcls.engine.model_state import BaseFacts, unwrapped
from peftcls.tasks.base import Task

# The last one describes every step of the tracing wherever something listens, which takes seconds.
LOGGERS = ("torch.onnx", "onnxscript", "onnx_ir", "torch.__trace")
MAX_ONE_FILE_BYTES = 1_900_000_000
"""A larger model has its weights in a second file: a file of ONNX holds two gigabytes."""


class HeadGraph(torch.nn.Module):
    """A base with its head, as a function of token ids and attention mask alone.

    Args:
        inner: the merged model.
        task: says what the head reads.
        facts: of the base.
    """

    def __init__(self, inner: Any, task: Task, facts: BaseFacts) -> None:
        super().__init__()
        self.inner = unwrapped(inner)
        # Fused kernels of attention are not part of ONNX.
        self.inner.set_attn_implementation("eager")
        self.is_span = task.answer_kind == "span"
        self.causal = facts.causal
        self.sees_past_only = task.causal
        self.pooling = facts.pooling if facts.pooling == "mean" else task.pooling
        self.head = head_of(self.inner) if facts.causal or facts.pooling == "mean" else None

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits of shape (rows, outputs), or of shape (rows, tokens, 2) for the ends of spans."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids
        logits: torch.Tensor
        if self.head is None:
            output = self.inner(**inputs)
            if self.is_span:
                return torch.stack([output.start_logits, output.end_logits], dim=-1)
            logits = output.logits
            return logits
        if self.causal:
            states = decoder_states(
                self.inner.base_model, input_ids, attention_mask, causal=self.sees_past_only
            )
        else:
            states = self.inner.base_model(**inputs).last_hidden_state
        if not self.is_span:
            states = self._pooled(states, attention_mask)
        logits = self.head(states)
        return logits

    def _pooled(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """What the head reads. A sum over marked tokens can be exported; an index cannot."""
        if self.pooling == "mean":
            return pool(states, mask, "mean")
        marks = marked_token(mask, self.pooling or "last")
        return (states * marks.unsqueeze(-1).to(states.dtype)).sum(1)


def write_graph(path: Path, graph: HeadGraph, batch: Batch, directory: str | Path) -> None:
    """Write a graph to a file, with rows and tokens as free dimensions.

    Raises:
        ValueError: PyTorch cannot export it.
    """
    inputs = {name: batch[name] for name in INPUTS if name in batch}
    size = sum(tensor.numel() * tensor.element_size() for tensor in graph.state_dict().values())
    try:
        with _quiet_export(), torch.no_grad():
            torch.onnx.export(
                graph,
                (),
                path,
                kwargs=inputs,
                dynamo=True,
                input_names=list(inputs),
                output_names=["logits"],
                dynamic_shapes={name: {0: "rows", 1: "tokens"} for name in inputs},
                external_data=size > MAX_ONE_FILE_BYTES,
                verbose=False,
            )
    # The exporter traces the model's own code, which may raise anything.
    except Exception as error:
        cause = error.__cause__ or error
        reason = str(cause).strip().partition("\n")[0]
        raise ValueError(
            f"{directory} cannot be exported to ONNX: PyTorch cannot trace "
            f"{type(graph.inner).__name__} ({type(cause).__name__}: {reason}); use `peftcls merge`."
        ) from error


@contextlib.contextmanager
def _quiet_export() -> Iterator[None]:
    """Hide what the exporter says about packages and operators that are not used here."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    # onnxruntime writes to the root logger, and the messages of other programs stay.
    logging.getLogger().addFilter(_is_error)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.getLogger().removeFilter(_is_error)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


PRODUCTS = ("MatMul", "Gemm")
"""Nodes of a graph that multiply by the weights of a layer."""


def quantize_weights(path: Path) -> None:
    """Replace a model by one with weights in 8 bits; activations are quantized while it runs.

    Each output of a layer has a scale of its own. Weights use 7 of the 8 bits: processors without
    instructions for products of 8 bits (VNNI) cut off sums of larger ones. The last product, of the
    head, stays as it is: it is small, and one that was fitted as a linear probe tells labels apart
    by differences that are lost in 8 bits.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    whole = path.with_name("float32.onnx")
    path.rename(whole)
    nodes = onnx.load(whole, load_external_data=False).graph.node
    head = [node.name for node in nodes if node.op_type in PRODUCTS][-1]
    with _quiet_export():
        quantize_dynamic(
            whole,
            path,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
            # A Gemm is made into a MatMul with another name before nodes are left out.
            nodes_to_exclude=[head, f"{head}_MatMul"],
        )
    whole.unlink()


class OnnxSession:
    """A model that onnxruntime runs on the CPU."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        self.inputs = [each.name for each in self._session.get_inputs()]

    def logits(self, batch: Batch) -> torch.Tensor:
        """The logits of a batch."""
        inputs = {name: batch[name].numpy().astype(np.int64) for name in self.inputs}
        (logits,) = self._session.run(["logits"], inputs)
        return torch.from_numpy(np.asarray(logits))
