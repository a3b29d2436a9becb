"""Pointers of Git LFS: the few lines that stand for a large file in a clone without it."""

from pathlib import Path

SIGNATURE = b"version https://git-lfs.github.com/spec/"
WHAT_IT_IS = (
    "is a pointer of Git LFS and not the file itself; fetch it in the clone: git lfs install, then "
    "git lfs pull"
)


def is_pointer(path: Path) -> bool:
    """Whether a file is such a pointer."""
    with path.open("rb") as file:
        return file.read(len(SIGNATURE)) == SIGNATURE
