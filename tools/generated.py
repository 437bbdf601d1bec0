"""Parts of documents that programs write: `--write-docs`."""

from __future__ import annotations

import re
from pathlib import Path


def replace_generated(page: Path, name: str, text: str) -> None:
    """Replace what stands between the marks of one generated part."""
    begin, end = f"<!-- generated: {name} -->", f"<!-- end: {name} -->"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    before = page.read_text()
    after, count = pattern.subn(lambda _: f"{begin}\n{text}\n{end}", before)
    assert count == 1, f"{page} has {count} parts {name}"
    page.write_text(after)
