"""Score a closed set of answers with a causal LM: a trie of their tokens (constrained decoding)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Tokens = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class LabelTrie:
    """A closed set of answers as a trie of tokens.

    The probability of an answer is a product over its forks: at each, the model's probability of
    the answer's next token among the tokens that are possible there. The probabilities sum to one,
    a long answer is not at a disadvantage, and tokens at which answers do not differ cost nothing.
    It is constrained decoding, summed over all paths.

    Args:
        answers: the tokens of each answer, each with the end mark.
        forks: by prefix, the tokens that may follow it, where there are several.
        runs: the longest of these prefixes; a forward pass over each covers every fork.
    """

    answers: tuple[Tokens, ...]
    forks: dict[Tokens, tuple[int, ...]]
    runs: tuple[Tokens, ...]

    @classmethod
    def build(cls, answers: Sequence[Sequence[int]], end: int) -> LabelTrie:
        """Build the trie; an end mark after each answer lets one be the prefix of another."""
        ended = tuple((*answer, end) for answer in answers)
        # Dictionaries serve as ordered sets here.
        next_tokens: dict[Tokens, dict[int, None]] = {}
        for answer in ended:
            for depth, token in enumerate(answer):
                next_tokens.setdefault(answer[:depth], {})[token] = None
        forks = {}
        for prefix, tokens in next_tokens.items():
            if len(tokens) > 1:
                forks[prefix] = tuple(tokens)
        runs = tuple(prefix for prefix in forks if not _is_extended(prefix, forks))
        return cls(ended, forks, runs or ((),))

    def fork_depths(self, run: Tokens) -> list[int]:
        """The depths of the forks along a run, without the one at its start, in ascending order."""
        prefixes = [prefix for prefix in self.forks if prefix and run[: len(prefix)] == prefix]
        return sorted(len(prefix) for prefix in prefixes)

    def log_probabilities(self, logits: dict[Tokens, torch.Tensor]) -> torch.Tensor:
        """Log-probabilities of the answers.

        Args:
            logits: by fork, the logits of shape (rows, vocabulary) after its prefix.

        Returns:
            (rows, answers), in float64.
        """
        import torch

        branches = {}
        for prefix, tokens in self.forks.items():
            among_possible = logits[prefix][:, list(tokens)].double()
            branches[prefix] = torch.log_softmax(among_possible, dim=-1)
        some_logits = next(iter(logits.values()))
        columns = []
        for answer in self.answers:
            total = torch.zeros(
                some_logits.shape[0], dtype=torch.float64, device=some_logits.device
            )
            for depth, token in enumerate(answer):
                prefix = answer[:depth]
                if prefix in branches:
                    total = total + branches[prefix][:, self.forks[prefix].index(token)]
            columns.append(total)
        return torch.stack(columns, dim=1)


def _is_extended(prefix: Tokens, prefixes: dict[Tokens, tuple[int, ...]]) -> bool:
    """Whether another of the prefixes begins with this one."""
    return any(other != prefix and other[: len(prefix)] == prefix for other in prefixes)
