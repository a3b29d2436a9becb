"""Where the states that leave frozen layers are kept, line by line: in memory, or in a file if they are many."""

import os
import shutil
import tempfile
from pathlib import Path

import torch

from peftcls.engine.packing import packing

IN_MEMORY_BYTES = 1 << 30  # more is kept in a memory-mapped file
Place = tuple[int, int]


class States:
    """Room for so many states, and the places of the lines that are kept.

    Args:
        tokens: so many have room.
        width: of a state.
        dtype: of the states.
        folder: where a file is made.
    """

    def __init__(self, tokens: int, width: int, dtype: torch.dtype, folder: Path) -> None:
        self.places, self.used = dict[bytes, Place](), 0
        self.folder: Path | None = None
        if tokens * width * dtype.itemsize <= IN_MEMORY_BYTES:
            self.kept = torch.empty(tokens, width, dtype=dtype)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            self.folder = Path(tempfile.mkdtemp(prefix=".states-", dir=folder))
            self.kept = torch.from_file(str(self.folder / "states"), shared=True, size=tokens * width, dtype=dtype).view(tokens, width)
            if os.name != "nt":  # an open file goes with the program, however that ends; Windows removes none that is open
                shutil.rmtree(self.folder)

    def keep(self, key: bytes, line: torch.Tensor) -> None:
        """Keep the states of a line of tokens, of shape (tokens, width)."""
        if key not in self.places:
            self.kept[self.used : self.used + len(line)] = line.to(self.kept)
            self.places[key] = (self.used, len(line))
            self.used += len(line)

    def of(self, places: list[Place], width: int) -> torch.Tensor:
        """Kept lines, of shape (lines, width, width of a state), with zeros behind their ends; packed, where the model reads packed."""
        starts, lengths = torch.tensor(places).unsqueeze(2).unbind(1)
        across = torch.arange(width)
        index, real = (starts + across).flatten(), (across < lengths).flatten()
        if (own := packing()) is not None:
            return self.kept.index_select(0, index[own.given.cpu()]).unsqueeze(0)
        found = self.kept.new_zeros(len(index), self.kept.shape[1])
        found[real] = self.kept.index_select(0, index[real])
        return found.view(len(places), width, -1)

    def close(self) -> None:
        """Remove the file, if there is one."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
