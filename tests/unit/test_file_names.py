"""Names of files in an archive: whatever a tensor is called, its file stays below the folder."""

from __future__ import annotations

import pytest

from darkroom_api.file_names import FileNames


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("plain", "plain.png"),
        ("a/b", "a/b.png"),
        ("../../etc/passwd", "__/__/etc/passwd.png"),
        ("/absolute", "absolute.png"),
        ("..\\windows", ".._windows.png"),
        ("C:/x", "C_/x.png"),
        ("con", "_con.png"),
        ("lpt1.old", "_lpt1.old.png"),
        (".", "_.png"),
        ("/", "_.png"),
        ("ends. ", "_ends_.png"),
        ("a\u202eb\u0085c", "a_b_c.png"),
        (".hidden", ".hidden.png"),
    ],
)
def test_odd_names(name: str, path: str) -> None:
    """What would lead elsewhere, or that some file system does not take, is replaced."""
    assert FileNames().take(name, ".png") == path


def test_long_names() -> None:
    """No part of a path is longer than file systems take, in bytes and with its ending."""
    for name in ("n" * 255, "ü" * 255, "😀" * 255):
        assert len(FileNames().take(name, "-100.safetensors").encode()) < 255


def test_taken_names_get_numbers() -> None:
    """Two files never share a path, in capitals or not; nor does a file share a folder's."""
    names = FileNames()
    taken = [
        names.take(name, ".png")
        for name in ("a", "A", "a", "a.png/x", "a.png/y", "folder/x", "ﬁ", "fi", "é", "e\u0301")
    ]
    assert taken == [
        "a.png",
        "A~2.png",
        "a~3.png",
        "a.png~4/x.png",
        "a.png~4/y.png",
        "folder/x.png",
        "ﬁ.png",
        "fi~2.png",
        "é.png",
        "e\u0301~2.png",
    ]
    assert names.take("folder", "") == "folder~2"


def test_very_many_equal_names() -> None:
    """Thousands of names that become the same get numbers at once."""
    names = FileNames()
    paths = [names.take("." * (number % 200 + 2), ".png") for number in range(10_000)]
    assert len(set(paths)) == 10_000
