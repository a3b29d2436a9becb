"""What ships with the package: a small pretrained base model, and sample rows to try things on."""

from pathlib import Path

FOLDER = Path(__file__).parent
BASE_FOLDER = FOLDER / "base"
SAMPLES_FOLDER = FOLDER / "data"


def sample(name: str) -> Path:
    """The path of a sample file, for example `sample("papers_train.csv")`.

    Raises:
        ValueError: there is no sample file of this name.
    """
    path = SAMPLES_FOLDER / name
    if path.is_file():
        return path
    names = sorted(file.name for file in SAMPLES_FOLDER.glob("*.*"))
    raise ValueError(f"there is no sample {name!r}; there are {names}.")
