"""A question to a set of documents: BM25 finds passages, the model looks for the answer in them."""

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np
import regex
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer

from peftcls.data.reading import RowError
from peftcls.inference.predictor import Predictor
from peftcls.tasks.answers import Answer
from peftcls.tasks.extractive_qa import ExtractiveQA

SATURATION = 1.2
"""k1 of BM25: how soon more of the same word counts for nothing."""
LENGTH_SHARE = 0.75
"""b of BM25: how far a long passage must hold a word more often."""
# Scripts that put no spaces between words are compared by pairs of neighbouring characters.
UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
WORD = regex.compile(rf"[{UNSPACED}]+|[\p{{L}}\p{{M}}\p{{N}}--[{UNSPACED}]]+", regex.V1)


@dataclasses.dataclass(frozen=True)
class PassageAnswer:
    """An answer, and where it was found.

    Args:
        answer: its `start` and `end` are characters of the passage; `probability` is relative to
            all spans of that passage.
        passage: the number of the passage, from 0.
        score: what the answers of several passages are ordered by.
    """

    answer: Answer
    passage: int
    score: float


class Passages:
    """The passages of a document set, which can be asked.

    They are ranked for a question by BM25 (Robertson and Zaragoza 2009, "The Probabilistic
    Relevance Framework: BM25 and Beyond", section 3.4).

    Args:
        texts: the passages, such as paragraphs or pages; equal ones are one.

    Raises:
        RowError: a passage is no text, or none has a word.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        if isinstance(texts, str):
            raise RowError("expected a list of passages, found one text; put it into a list.")
        self.texts = list(dict.fromkeys(texts))
        for number, text in enumerate(self.texts):
            if not isinstance(text, str):
                raise RowError(
                    f"passage {number} is {type(text).__name__}; expected each to be a text."
                )
        self._counter = CountVectorizer(analyzer=_terms)
        try:
            counts = sparse.csr_array(self._counter.fit_transform(self.texts), dtype=np.float64)
        except ValueError:
            raise RowError("no passage has a word; expected texts to search.") from None
        self._weights = _bm25(counts)

    def __len__(self) -> int:
        return len(self.texts)

    def relevance(self, question: str) -> np.ndarray:
        """The BM25 score of every passage for a question: an array of shape (passages,)."""
        words = sparse.csr_array(self._counter.transform([question]), dtype=np.float64)
        return np.asarray((self._weights @ words.T).todense()).ravel()

    def ask(self, predictor: Predictor, question: str, *, read: int = 5) -> list[PassageAnswer]:
        """Answer a question from the passages that are most relevant to it.

        Args:
            predictor: of an `ExtractiveQA`.
            question: what to ask.
            read: how many passages the model reads.

        Returns:
            The answers that were found, at most one a passage, the best first.

        Raises:
            RowError: the question is empty.
            ValueError: the predictor finds no answers in texts, or `read` is not positive.
        """
        if not isinstance(predictor.task, ExtractiveQA):
            raise ValueError(
                f"The adapter was trained for {type(predictor.task).__name__}; questions need one "
                "that was trained for ExtractiveQA."
            )
        if read < 1:
            raise ValueError(f"read={read}: expected at least 1 passage.")
        if not question.strip():
            raise RowError("the question is empty.")
        relevance = self.relevance(question)
        chosen = np.argsort(-relevance, kind="stable")[:read]
        answers = predictor.predict([(question, self.texts[i]) for i in chosen])
        shares = _softmax(relevance[chosen])
        found = [
            PassageAnswer(answer, int(i), float(share * (answer.probability or 0.0)))
            for answer, i, share in zip(answers, chosen, shares, strict=True)
            if answer.text
        ]
        return sorted(found, key=lambda each: -each.score)


def _terms(text: str) -> Iterator[str]:
    """What a text is compared by: words without case, or pairs of characters."""
    for match in WORD.finditer(text.casefold()):
        word = match[0]
        if len(word) == 1 or not regex.match(f"[{UNSPACED}]", word):
            yield word
        else:
            yield from (word[i : i + 2] for i in range(len(word) - 1))


def _bm25(counts: sparse.csr_array) -> sparse.csr_array:
    """The weight of each word in each passage, from how often it occurs there."""
    passages = counts.shape[0]
    with_word = np.bincount(counts.indices, minlength=counts.shape[1])
    rarity = np.log1p((passages - with_word + 0.5) / (with_word + 0.5))
    lengths = counts.sum(axis=1)
    room = SATURATION * (1 - LENGTH_SHARE + LENGTH_SHARE * lengths / lengths.mean())
    weights = counts.copy()
    passage_of = np.repeat(np.arange(passages), np.diff(counts.indptr))
    shares = counts.data * (SATURATION + 1) / (counts.data + room[passage_of])
    weights.data = rarity[counts.indices] * shares
    return weights


def _softmax(values: np.ndarray) -> np.ndarray:
    shares = np.exp(values - values.max())
    return shares / shares.sum()
