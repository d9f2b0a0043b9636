"""A figure for people: its numbers as a Markdown table, its pictures side by side."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from training.evaluation.figures import Figure
from training.world.drawing import Pixels

SHEET_COLUMNS, SHEET_ROWS = 4, 6  # pairs of a contact sheet


def contact_sheet(pairs: Sequence[tuple[Pixels, Pixels]]) -> Image.Image:
    """Return the first pairs of a figure in rows."""
    pictures = [np.concatenate(pair, axis=1) for pair in pairs[: SHEET_COLUMNS * SHEET_ROWS]]
    pictures += [np.zeros_like(pictures[0])] * (-len(pictures) % SHEET_COLUMNS)
    rows = [
        np.concatenate(pictures[start : start + SHEET_COLUMNS], axis=1)
        for start in range(0, len(pictures), SHEET_COLUMNS)
    ]
    return Image.fromarray(np.concatenate(rows))


def table(figure: Figure) -> str:
    """Return a figure as a Markdown table."""
    columns = list(dict.fromkeys(column for row in figure.rows.values() for column in row))
    lines = [
        f"{figure.name}: {figure.sample.count} scenes, {figure.sample.split} split; goal: {figure.goal}",
        "",
        f"| | {' | '.join(columns)} |",
        f"|---|{'---:|' * len(columns)}",
    ]
    for name, row in figure.rows.items():
        cells = [f"{row[column]:.3f}" if column in row else "" for column in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
