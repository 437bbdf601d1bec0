"""Names for files in an archive, from names that anybody may have chosen."""

from __future__ import annotations

import re
import unicodedata
from typing import Final

MAX_PART_BYTES: Final = 200
"""So long a part of a path may be: file systems take 255 bytes, and endings are still added."""

_FORBIDDEN: Final = re.compile(r'[<>:"|?*\\]')
_RESERVED: Final = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)


class FileNames:
    """Gives each name a path of its own, which leads nowhere but below the archive's folder.

    Slashes make folders. What a file system would take for something else becomes `_`, and a name
    that is taken, in capitals or not, gets a number.
    """

    def __init__(self) -> None:
        self._files: set[str] = set()
        self._folders: dict[str, str] = {}
        self._numbers: dict[str, int] = {}

    def take(self, name: str, ending: str) -> str:
        """Name a file."""
        *folders, stem = [_part(part) for part in name.split("/") if part not in ("", ".")] or ["_"]
        above = ""
        for folder in folders:
            above = self._folder(above + folder) + "/"
        path = self._number(above + stem, ending)
        self._files.add(_same(path))
        return path

    def _folder(self, wanted: str) -> str:
        """Name a folder; the same one gets the same name again."""
        known = self._folders.get(_same(wanted))
        if known is None:
            known = self._number(wanted, "")
            self._folders[_same(wanted)] = self._folders[_same(known)] = known
        return known

    def _number(self, stem: str, ending: str) -> str:
        """Put a number behind a stem, if the path is taken."""
        path = wanted = stem + ending
        while _same(path) in self._files or _same(path) in self._folders:
            # Counted on from the last number: thousands of equal names are no loop in a loop.
            number = self._numbers.get(_same(wanted), 1) + 1
            self._numbers[_same(wanted)] = number
            path = f"{stem}~{number}{ending}"
        return path


def _part(text: str) -> str:
    text = "".join("_" if _is_odd(character) else character for character in text)
    text = _FORBIDDEN.sub("_", text)
    text = text.encode()[:MAX_PART_BYTES].decode(errors="ignore")
    if text.endswith((".", " ")) or text.startswith(" "):
        text = f"_{text.strip(' .')}_"
    return f"_{text}" if _RESERVED.fullmatch(text) else text


def _is_odd(character: str) -> bool:
    """Tell control characters, and those that turn a line around or cannot be seen."""
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def _same(path: str) -> str:
    """Give one text for all paths that some file system takes for the same."""
    return unicodedata.normalize("NFC", path).casefold()
