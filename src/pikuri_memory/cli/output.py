"""What the command line prints, and how.

Texts of memories are other people's words: nothing in them may reach a terminal as a control
sequence or be taken for markup. Machines get JSON, one document or one line an item.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime
from typing import Any, Final, TextIO

from pikuri_memory.errors import InvalidRequestError, PikuriMemoryError

# Control characters (C0, DEL, C1), line separators, the marks that turn the direction of writing,
# and halves of surrogate pairs. Joiners stay: emoji and several scripts need them.
_UNSAFE: Final = "\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_CONTROL: Final = re.compile(f"[{_UNSAFE}]")
_CONTROL_BUT_NEWLINE: Final = re.compile(f"(?!\n)[{_UNSAFE}]")
_NAMED: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_TABLE_ROWS: Final = 500


def prepare_streams() -> None:
    """Let no character that the terminal's encoding lacks end a command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def escaped(text: str, *, newlines: bool = False) -> str:
    """A text that does nothing to a terminal: control characters as ``\\x1b``.

    Args:
        text: Any text.
        newlines: Whether line ends stay; otherwise the result is one line.
    """
    return (_CONTROL_BUT_NEWLINE if newlines else _CONTROL).sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    character = match.group()
    code = ord(character)
    return _NAMED.get(character) or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")


def to_json(value: Any) -> str:
    """One line of JSON: scripts other than Latin as they are, anything unsafe escaped."""
    text = json.dumps(plain(value), ensure_ascii=False, allow_nan=False)
    return _CONTROL.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def plain(value: Any) -> Any:
    """Values of this package as what JSON knows; absent fields stay, as null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, date):  # datetime too
        return value.isoformat()
    return value


def print_error(error: PikuriMemoryError, *, as_json: bool) -> None:
    """An error on standard error: two lines for a person, one document for a program."""
    if as_json:
        told = {"code": error.code, "message": error.message, "hint": error.hint}
        print(to_json({"error": told}), file=sys.stderr)
        return
    print(f"error: {escaped(error.message, newlines=True)}", file=sys.stderr)
    if error.hint:
        print(f"hint: {escaped(error.hint, newlines=True)}", file=sys.stderr)


class Noted(str):
    """The text of a cell with a remark, which only a table on a terminal shows.

    Args:
        text: The text.
        note: The remark.
    """

    note: str

    def __new__(cls, text: str, note: str) -> Noted:
        made = super().__new__(cls, text)
        made.note = note
        return made


@dataclasses.dataclass(frozen=True)
class Output:
    """Where a verb puts what it has to say.

    Attributes:
        json: Whether a program reads it.
    """

    json: bool

    @property
    def terminal(self) -> bool:
        """Whether a person looks at it as it comes."""
        return not self.json and sys.stdout.isatty()

    def document(self, value: Any) -> None:
        """The one JSON document of a verb; nothing where a person reads."""
        if self.json:
            print(to_json(value))

    def line(self, value: Any) -> None:
        """One item of JSONL; nothing where a person reads."""
        if self.json:
            print(to_json(value))

    def say(self, text: str = "") -> None:
        """A line, or several, for a person."""
        if not self.json:
            print(escaped(text, newlines=True))

    def note(self, text: str) -> None:
        """A remark that is no result: to standard error, for a person."""
        if not self.json:
            print(escaped(text, newlines=True), file=sys.stderr)

    def fields(self, rows: Iterable[tuple[str, object]]) -> None:
        """Names with values, one a line; without those that have none."""
        kept = [(name, str(value)) for name, value in rows if value not in (None, "")]
        width = max((len(name) for name, _ in kept), default=0)
        for name, value in kept:
            first, *more = value.split("\n")
            self.say(f"{name + ':':<{width + 1}} {first}")
            for line in more:
                self.say(" " * (width + 2) + line)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> int:
        """A table on a terminal; elsewhere a line a row, with tabs between and no heading.

        Long ones come in parts, as they are read.

        Returns:
            The number of rows.
        """
        if self.json:
            return 0
        count = 0
        if not self.terminal:
            for row in rows:
                print("\t".join(map(escaped, row)))
                count += 1
            return count
        for part in _parts(iter(rows)):
            _draw(columns, part)
            count += len(part)
        return count


def _parts(rows: Iterator[Sequence[str]]) -> Iterator[list[Sequence[str]]]:
    while part := list(itertools.islice(rows, _TABLE_ROWS)):
        yield part


def _cell(cell: str) -> Any:
    from rich.text import Text

    shown = Text(escaped(cell))
    if isinstance(cell, Noted):
        shown.append(f"\n({escaped(cell.note)})", style="dim")
    return shown


def _draw(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    for column in columns:
        table.add_column(
            Text(column),
            overflow="fold",
            no_wrap=column in ("score", "learnt", "at", "id"),
            ratio=1 if column == "memory" else None,
        )
    for row in rows:
        # Text objects: brackets in a memory are no markup.
        table.add_row(*(_cell(cell) for cell in row))
    Console(highlight=False, markup=False, emoji=False).print(table)


def day(moment: datetime | None) -> str:
    """A time as a person reads it, in the local time zone, to the minute."""
    return "" if moment is None else moment.astimezone().strftime("%Y-%m-%d %H:%M")


def size(count: float | None) -> str:
    """Bytes as a person reads them."""
    if count is None:
        return "unknown"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def counted(count: int, one: str, many: str | None = None) -> str:
    """``1 memory``, ``2 memories``."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def read_input(stream: TextIO | None = None) -> str:
    """All of standard input as a text, without line ends at its end.

    Raises:
        InvalidRequestError: It is not UTF-8.
    """
    source = sys.stdin if stream is None else stream
    try:
        data = source.buffer.read() if isinstance(source, io.TextIOWrapper) else source.read()
        text = data.decode("utf-8-sig") if isinstance(data, bytes) else data
    except UnicodeDecodeError:
        raise InvalidRequestError(
            "standard input is not UTF-8", hint="convert it first, with iconv for example"
        ) from None
    return text.rstrip("\r\n")


def confirmed(question: str, *, wanted: Sequence[str], flag: str) -> bool:
    """Ask a person on standard error; whether the answer is one of the wanted ones.

    Raises:
        InvalidRequestError: Nobody is there to answer.
    """
    print(escaped(question, newlines=True), end=" ", file=sys.stderr, flush=True)
    answer = sys.stdin.readline()
    if not answer:
        print(file=sys.stderr)
        raise InvalidRequestError("nobody answered: nothing was changed", hint=f"give {flag}")
    return answer.strip() in wanted
