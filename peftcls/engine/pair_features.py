"""What the head reads of a pair that is compared: both texts together, and each text alone.

A base that was trained to give texts of one meaning similar vectors tells more about a pair when it
reads each text alone: Reimers and Gurevych 2019, "Sentence-BERT", section 3. What only shows when
both are read together is in the first part.
"""

import torch
from torch.nn import functional as F

SEQUENCES = 3
"""Of each row: both texts, the first, the second."""


def compared_width(width: int) -> int:
    """The number of features of a pair, for states of so many dimensions."""
    return SEQUENCES * width + 1


def compare_texts(states: torch.Tensor) -> torch.Tensor:
    """The features of pairs.

    Args:
        states: of the sequences, of shape (3 x rows, width): of each row, both texts, the first,
            and the second.

    Returns:
        Features of shape (rows, 3 x width + 1): the state of both texts; the differences of the two
        texts' directions by their size, and their products; and the distance of the directions.
        Directions have the length sqrt(width), so that all features are about as large as states.
    """
    width = states.shape[1]
    together, first, second = states.unflatten(0, (-1, SEQUENCES)).unbind(1)
    size = width**0.5
    first = size * F.normalize(first.float(), dim=1)
    second = size * F.normalize(second.float(), dim=1)
    differences = first - second
    # sqrt(width) x (1 - cosine): small numbers, which keep their digits in bfloat16.
    distance = (differences**2).sum(1, keepdim=True) / (2 * size)
    features = [together, differences.abs(), first * second, distance]
    return torch.cat([part.to(states.dtype) for part in features], 1)


def importance(features: int) -> torch.Tensor:
    """How much larger than the others a linear probe sees each feature of a pair.

    The distance is one feature beside many. Under one penalty for all, it would count as little as
    any of them; it is made as large as all dimensions of a state together.
    """
    width = (features - 1) // SEQUENCES
    sizes = torch.ones(features, dtype=torch.float64)
    sizes[-1] = width**0.5
    return sizes
