"""A closed set of answers as a trie of tokens: which states to read, and what each answer's probability is."""

import dataclasses
from collections.abc import Sequence

import torch

Tokens = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Choices:
    """Answers that are told apart one token at a time.

    An answer's probability is the product, over the places where answers part, of the model's probability of its
    branch among the branches that are open there. The probabilities sum to one, a long answer is not at a
    disadvantage, and tokens on which no answer parts cost nothing. It is constrained decoding, summed over all paths.
    """

    answers: tuple[Tokens, ...]
    forks: dict[
        Tokens, tuple[int, ...]
    ]  # prefix -> the tokens that may follow it, where there are several
    runs: tuple[Tokens, ...]  # the longest prefixes: one sequence of each covers every fork

    @classmethod
    def of(cls, answers: Sequence[Sequence[int]], end: int) -> "Choices":
        """The trie of the answers, each closed by the end mark, so that one may be the beginning of another."""
        closed = tuple((*answer, end) for answer in answers)
        follow: dict[Tokens, dict[int, None]] = {}
        for answer in closed:
            for place, token in enumerate(answer):
                follow.setdefault(answer[:place], {})[token] = None
        forks = {prefix: tuple(tokens) for prefix, tokens in follow.items() if len(tokens) > 1}
        runs = tuple(p for p in forks if not any(q != p and q[: len(p)] == p for q in forks))
        return cls(closed, forks, runs or ((),))

    def log_probabilities(self, logits: dict[Tokens, torch.Tensor]) -> torch.Tensor:
        """Log-probabilities of shape (rows, answers) from the logits, (rows, vocabulary), after each fork's prefix."""
        branch = {
            prefix: torch.log_softmax(logits[prefix][:, list(tokens)].double(), dim=-1)
            for prefix, tokens in self.forks.items()
        }
        rows = next(iter(logits.values())).shape[0]
        columns = []
        for answer in self.answers:
            total = torch.zeros(
                rows, dtype=torch.float64, device=next(iter(logits.values())).device
            )
            for place, token in enumerate(answer):
                if (prefix := answer[:place]) in branch:
                    total = total + branch[prefix][:, self.forks[prefix].index(token)]
            columns.append(total)
        return torch.stack(columns, dim=1)
