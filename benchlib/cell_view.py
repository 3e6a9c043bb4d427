"""How an object shows itself: a line as text, and a small table in a notebook's cell.

Knows HTML, and how long a line may be. Ignorant of what is shown: each class words its own answer
and its own rows. All wings know this file.
"""

from __future__ import annotations

import html
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

LONGEST_LINE = 160
"""The most letters of a repr's words: two lines of a terminal."""
MOST_ROWS = 20
"""The most rows of a table; a last line says how many more there are."""


@dataclass(frozen=True)
class CellView:
    """What a cell shows: the `answer` in words, then a table of `rows` of text.

    Without a `head`, a row is a name and its value. `left_out` rows are only counted. `link` is a
    web address to open.
    """

    answer: str
    rows: Sequence[Sequence[str]] = ()
    head: Sequence[str] = ()
    left_out: int = 0
    link: str | None = None

    @property
    def line(self) -> str:
        """The answer in one line, cut where it is longer than LONGEST_LINE letters."""
        return textwrap.shorten(self.answer, LONGEST_LINE, placeholder=" ...")

    def to_html(self) -> str:
        """The answer and the table as HTML; a wide table scrolls in a box of its own."""
        first, *others = self.answer.split("\n")
        parts = [f"<p><strong>{html.escape(first)}</strong></p>"]
        parts += [f"<p>{html.escape(line)}</p>" for line in others]
        if self.rows:
            parts.append(f'<div style="overflow-x:auto">{self._table()}</div>')
        left_out = self.left_out + max(0, len(self.rows) - MOST_ROWS)
        if left_out:
            parts.append(f"<p>and {left_out:,} more</p>")
        if self.link is not None:
            address = html.escape(self.link)
            parts.append(f'<p><a href="{address}">{address}</a></p>')
        return "".join(parts)

    def _table(self) -> str:
        head = ""
        if self.head:
            names = [f'<th scope="col" {_LEFT}>{html.escape(name)}</th>' for name in self.head]
            head = f"<thead><tr>{''.join(names)}</tr></thead>"
        body = [_row(row) for row in self.rows[:MOST_ROWS]]
        return f"<table>{head}<tbody>{''.join(body)}</tbody></table>"


class ShownInCell:
    """An object whose repr is a line, and which a notebook shows as a table: see `_view`.

    A dataclass takes this repr with `repr=False`.
    """

    def _view(self) -> CellView:
        """What to show: the words of `str()`. A class that has none must have its own view."""
        return CellView(str(self))

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self._view().line}>"

    def _repr_html_(self) -> str:
        return self._view().to_html()


_LEFT = 'style="text-align:left"'


def _row(cells: Sequence[str]) -> str:
    """A row of the table; its first cell names it."""
    name, *values = cells
    head = f'<th scope="row" {_LEFT}>{html.escape(name)}</th>'
    rest = [f"<td {_LEFT}>{html.escape(value)}</td>" for value in values]
    return f"<tr>{head}{''.join(rest)}</tr>"
