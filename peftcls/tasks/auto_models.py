"""The transformers Auto classes of the tasks, imported when a model is built."""

from typing import Any


class AutoModel:
    """A class attribute: the Auto class of transformers with this name.

    A task is often used without a model, to check rows for example; transformers takes seconds to
    import.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, task: object, owner: type) -> Any:
        import transformers

        return getattr(transformers, self.name)
