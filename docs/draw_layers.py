"""Draw `docs/assets/layers.svg` from the layers that `tests/test_layers.py` checks.

Run it from the top of the checkout after a change of the layers: `python docs/draw_layers.py`.
"""

import importlib.util
from collections.abc import Collection, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "assets" / "layers.svg"
TITLES = {
    "cli": "the command",
    "recipe": "what scripts share",
    "training": "training",
    "inference": "use and reading",
    "models": "model and rows",
    "tasks": "meaning",
    "engine": "reading and computing",
    "errors": "the ground",
}
WIDTH = 900
ROW_HEIGHT = 52
ROW_GAP = 8
FIRST_BOX = 236
BOX_GAP = 10
BOX_HEIGHT = 32
CHARACTER_WIDTH = 8.2
BOX_PADDING = 26
PACKAGE_STYLE = 'class="own" fill="#fdf1de" stroke="#c98a2b"'
MODULE_STYLE = 'class="box" fill="#f4f6fa" stroke="#9aa7ba"'


def layers() -> list[set[str]]:
    """The layers of the package, the lowest first, by the names of packages and modules."""
    spec = importlib.util.spec_from_file_location("layers", ROOT / "tests" / "test_layers.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.LAYERS


def shown(names: Collection[str]) -> list[str]:
    """The names of a layer that are drawn: packages first, then single modules."""
    public = [name for name in names if name and not name.startswith("_")]
    return sorted(public, key=lambda name: (not is_package(name), name))


def is_package(name: str) -> bool:
    """Whether a name is a folder with modules; `demo` holds data."""
    return (ROOT / "peftcls" / name).is_dir() and name != "demo"


def title_of(names: Collection[str]) -> str:
    """What a layer is called in the picture."""
    return next(title for name, title in TITLES.items() if name in names)


def draw(layers: Sequence[Collection[str]]) -> str:
    """The picture: one row for each layer, the highest at the top."""
    height = len(layers) * (ROW_HEIGHT + ROW_GAP)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        'aria-labelledby="layers-title" font-family="system-ui, sans-serif" font-size="14">',
        f'<title id="layers-title">{describe(layers)}</title>',
    ]
    for number, names in enumerate(layers):
        top = (len(layers) - 1 - number) * (ROW_HEIGHT + ROW_GAP) + ROW_GAP // 2
        lines += draw_layer(number, names, top)
    return "\n".join([*lines, "</svg>", ""])


def draw_layer(number: int, names: Collection[str], top: int) -> list[str]:
    """One row: the layer's number and title, and a box for each package or module."""
    middle = top + ROW_HEIGHT // 2 + 5
    lines = [
        f'<rect class="box" fill="#f4f6fa" stroke="#9aa7ba" x="1" y="{top}" '
        f'width="{WIDTH - 2}" height="{ROW_HEIGHT}" rx="9"/>',
        f'<text class="soft" fill="#556071" x="18" y="{middle}">{number} &#160;{title_of(names)}'
        "</text>",
    ]
    left = float(FIRST_BOX)
    for name in shown(names):
        width = round(len(name) * CHARACTER_WIDTH + BOX_PADDING, 1)
        style = PACKAGE_STYLE if is_package(name) else MODULE_STYLE
        box_top = top + (ROW_HEIGHT - BOX_HEIGHT) // 2
        lines += [
            f'<rect {style} x="{left:g}" y="{box_top}" width="{width:g}" '
            f'height="{BOX_HEIGHT}" rx="7"/>',
            f'<text class="strong" fill="#1f2733" x="{left + width / 2:g}" y="{middle}" '
            f'text-anchor="middle">{name}</text>',
        ]
        left = round(left + width + BOX_GAP, 1)
    return lines


def describe(layers: Sequence[Collection[str]]) -> str:
    """The picture in words, for readers who do not see it."""
    rows = [f"layer {number}: {', '.join(shown(names))}" for number, names in enumerate(layers)]
    return (
        f"{len(layers)} layers; each imports only from itself and from those below it. "
        f"From the lowest: {'; '.join(rows)}."
    )


def main() -> None:
    """Write the picture."""
    PICTURE.write_text(draw(layers()), encoding="utf-8")


if __name__ == "__main__":
    main()
