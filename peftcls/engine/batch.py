"""A batch: the tensors that a model is given at once."""

import torch

Batch = dict[str, torch.Tensor]

# What a model reads of a batch; token types only where it has them.
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
