"""Which memory supersedes which, kept in memory: a search must not ask the disk for it.

The record's table ``successions`` is the truth. This copy is read by any thread and changed by the
writer after each commit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Link:
    """One link: the memory ``newer`` supersedes the memory ``older``, by row and by id."""

    newer: int
    older: int
    newer_id: str
    older_id: str


class Links:
    """All links of a record.

    Attributes:
        newer_of: The rows that supersede a row; rows that nothing supersedes are no keys.
    """

    def __init__(self, links: Iterable[Link] = ()) -> None:
        self._newer: dict[int, tuple[int, ...]] = {}
        self._older: dict[int, tuple[int, ...]] = {}
        self._ids: dict[int, str] = {}
        for link in links:
            self.add(link)

    def __bool__(self) -> bool:
        return bool(self._newer)

    @property
    def newer_of(self) -> Mapping[int, tuple[int, ...]]:
        return self._newer

    def ids_of(self, row: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Ids of the memories that a row supersedes, and of those that supersede it."""
        ids = self._ids
        older = self._older.get(row, ())
        newer = self._newer.get(row, ())
        # One that another thread is taking away at this moment has no id any more.
        return (
            tuple(id_ for other in older if (id_ := ids.get(other)) is not None),
            tuple(id_ for other in newer if (id_ := ids.get(other)) is not None),
        )

    def add(self, link: Link) -> None:
        """Add a link; one that is there stays as it is."""
        self._ids[link.newer] = link.newer_id
        self._ids[link.older] = link.older_id
        _put(self._newer, link.older, link.newer)
        _put(self._older, link.newer, link.older)

    def remove(self, newer: int, older: int) -> None:
        """Remove a link."""
        _take(self._newer, older, newer)
        _take(self._older, newer, older)
        for row in (newer, older):
            if row not in self._newer and row not in self._older:
                self._ids.pop(row, None)

    def clear(self) -> None:
        """Remove all."""
        self._newer.clear()
        self._older.clear()
        self._ids.clear()


def _put(table: dict[int, tuple[int, ...]], row: int, other: int) -> None:
    table[row] = tuple(sorted({*table.get(row, ()), other}))


def _take(table: dict[int, tuple[int, ...]], row: int, other: int) -> None:
    left = tuple(r for r in table.get(row, ()) if r != other)
    if left:
        table[row] = left
    else:
        table.pop(row, None)
