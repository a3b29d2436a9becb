"""A batch: the tensors that a model is given at once."""

import torch

Batch = dict[str, torch.Tensor]
