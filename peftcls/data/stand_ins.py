"""What stands in the place of a file that was not fetched: a pointer of Git LFS, or a web page."""

from pathlib import Path

POINTER = b"version https://git-lfs.github.com/spec/"
WEB_PAGES = (b"<!doctype html", b"<html")


def stand_in(path: Path) -> str | None:
    """What a file is instead of what its name says, and what to do; None where it is not so."""
    with path.open("rb") as file:
        beginning = file.read(len(POINTER))
    if beginning == POINTER:
        return (
            "is a pointer of Git LFS and not the file itself; fetch it in the clone: git lfs "
            "install, then git lfs pull"
        )
    if beginning.lstrip().lower().startswith(WEB_PAGES) and path.suffix.lower() != ".html":
        return (
            "is a web page and not the file itself; fetch it again, by the link to the raw file or "
            "while logged in"
        )
    return None
