"""What ships with the package: a small pretrained base model and sample papers and messages to try things on."""

from pathlib import Path

FOLDER = Path(__file__).parent
BASE_FOLDER = FOLDER / "base"


def sample(name: str) -> Path:
    """The path of a sample file, for example `sample("papers_train.csv")`."""
    if not (path := FOLDER / "data" / name).is_file():
        raise ValueError(
            f"there is no sample {name!r}; there are {sorted(p.name for p in (FOLDER / 'data').glob('*.*'))}."
        )
    return path
