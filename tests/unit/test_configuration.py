"""Settings, the catalogue and the headers that steer an answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from darkroom_api.errors import MalformedRequestError
from darkroom_api.headers import idempotency_key, preferred_wait
from darkroom_infra.catalog import Catalog, CatalogError, UnknownVaeError
from darkroom_infra.families import VaeFacts
from darkroom_infra.settings import Settings, SettingsError, hash_key
from tests.vaes import make_kl


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("DARKROOM_LEASE", "5", "no such setting"),
        ("DARKROOM_LEASE_SECONDS", "soon", "number"),
        ("DARKROOM_MAX_ATTEMPTS", "0", "greater"),
        ("DARKROOM_REDIS_URL", "http://nowhere", "pattern"),
        ("DARKROOM_API_KEYS", "anna", "name:key"),
        ("DARKROOM_API_KEYS", "anna:x,anna:y", "twice"),
        ("DARKROOM_WEBHOOK_SECRET", "secret", "whsec_"),
        ("DARKROOM_DTYPE", "float64", "float32"),
    ],
)
def test_bad_settings_are_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, reason: str
) -> None:
    """An unknown or invalid variable is refused with its name and the reason."""
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=name) as caught:
        Settings.load()
    assert reason in str(caught.value)


def test_a_file_of_settings_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A `.env` file is read; the environment goes before it; its unknown names are refused too."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("DARKROOM_MAX_ATTEMPTS=5\nDARKROOM_RESULT_TTL=9\nOTHER=1\n")
    monkeypatch.setenv("DARKROOM_RESULT_TTL", "8")
    settings = Settings.load()
    assert (settings.max_attempts, settings.result_ttl) == (5, 8)
    (tmp_path / ".env").write_text("DARKROOM_COLOUR=red\n")
    with pytest.raises(SettingsError, match="DARKROOM_COLOUR"):
        Settings.load()


def test_keys_are_held_as_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys are known by their hash, given plainly or as it."""
    monkeypatch.setenv("DARKROOM_API_KEYS", f"anna:a, bert:{hash_key('b')}")
    assert Settings.load().api_keys == {hash_key("a"): "anna", hash_key("b"): "bert"}


def write(tmp_path: Path, text: str) -> Path:
    """Write a catalogue."""
    path = tmp_path / "catalog.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('[vaes.x]\nfamily = "nope"\nsource = "a/b"', "unknown family 'nope'"),
        ('[vaes.x]\nfamily = "sd"', "source"),
        ('[vaes.x]\nfamily = "sd"\nsource = ""', "source"),
        ('[vaes.x]\nfamily = "sd"\nsource = "a/b"\ncolour = "red"', "colour"),
        ('[vaes.x]\nfamily = "sd"\nsource = "a/b"\ndtype = "int8"', "dtype"),
        ('[vaes.x]\nfamily = "sd"\nsource = "a/b"\nname = "y"', "name"),
        ("[vaes]\nx = 3", "table"),
        ("[other]\nx = 3", "vaes.NAME"),
        ("[vaes.x", "catalog.toml"),
    ],
)
def test_bad_catalogues_are_named(tmp_path: Path, text: str, reason: str) -> None:
    """A catalogue that cannot be used is refused with the entry and the reason."""
    with pytest.raises(CatalogError) as caught:
        Catalog.load(write(tmp_path, text))
    assert reason in str(caught.value)
    assert "catalog.toml" in str(caught.value)


def test_a_missing_catalogue_is_named(tmp_path: Path) -> None:
    """A file that is not there is an error, not an empty catalogue."""
    with pytest.raises(CatalogError, match=r"nowhere\.toml"):
        Catalog.load(tmp_path / "nowhere.toml")


def test_a_users_vaes_override(tmp_path: Path) -> None:
    """The user's entries come over the built-in ones; facts come from a folder's configuration."""
    make_kl(16).save_pretrained(tmp_path / "vae")
    source = f'family = "sd"\nsource = "{tmp_path / "vae"}"'
    path = write(tmp_path, f"[vaes.mine]\n{source}\n[vaes.sdxl]\n{source}")
    catalog = Catalog.load(path)
    assert catalog["mine"].facts == catalog["sdxl"].facts == VaeFacts(16, 8)
    assert "flux" in catalog
    with pytest.raises(UnknownVaeError):
        catalog["nope"]


def test_an_absent_folder_has_no_facts(tmp_path: Path) -> None:
    """An API without the worker's folders still starts."""
    path = write(tmp_path, '[vaes.mine]\nfamily = "sd"\nsource = "/nowhere/vae"')
    assert Catalog.load(path)["mine"].facts is None


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("wait=5", 5),
        ('wait="5"', 5),
        ("respond-async, wait=10", 10),
        ("Wait = 7; foo=bar", 7),
        ("wait=99999", 60),
        ("wait=-1", None),
        ("wait=x", None),
        ("", None),
        ("return=minimal", None),
    ],
)
def test_prefer(header: str, seconds: int | None) -> None:
    """`wait` is found among preferences, bounded, and nonsense is passed over."""
    assert preferred_wait(header) == seconds


def test_idempotency_keys() -> None:
    """A key may be quoted or bare, or absent; an empty one is refused."""
    assert idempotency_key('"abc"') == idempotency_key(" abc ") == "abc"
    assert idempotency_key(None) == ""
    with pytest.raises(MalformedRequestError):
        idempotency_key('""')
