"""The catalogue: the built-in VAEs, and a user's file over them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from darkroom_infra.catalog import Catalog, CatalogError, UnknownVaeError
from darkroom_infra.families import FAMILIES, VaeFacts
from tests.vaes import make_tiny, write_catalog


def load(folder: Path, text: str) -> Catalog:
    """Load a catalogue with a user's file."""
    path = folder / "catalog.toml"
    path.write_text(text)
    return Catalog.load(path)


def fault(folder: Path, text: str) -> str:
    """Give what is said of a file that cannot be used."""
    with pytest.raises(CatalogError) as caught:
        load(folder, text)
    return str(caught.value)


def test_built_in_vaes_can_be_checked_without_a_worker() -> None:
    """Every built-in VAE has a family and the figures that latents are checked against."""
    catalog = Catalog.load()
    assert len(catalog) >= 17
    for name, vae in catalog.items():
        assert vae.name == name
        assert vae.family in FAMILIES
        assert vae.facts is not None
        assert (vae.facts.temporal_factor == 1) == (vae.layout.fps is None)
    assert catalog["flux"].facts == VaeFacts(16, 8)
    assert catalog["sd-v1"].facts == VaeFacts(4, 8)
    assert catalog["ltx-video"].facts == VaeFacts(128, 32, 8)


def test_hub_sources_are_repositories() -> None:
    """A built-in VAE that is not shipped comes from a repository, and never from a folder."""
    for vae in Catalog.load().values():
        if vae.name != "demo":
            assert vae.source.count("/") == 1
            assert vae.folder is None


def test_the_demo_vae_is_shipped() -> None:
    """The `demo` entry points to a folder inside the package, and tells the truth about it."""
    demo = Catalog.load()["demo"]
    assert demo.folder is not None
    assert demo.layout.facts(json.loads((demo.folder / "config.json").read_text())) == demo.facts


def test_an_unknown_vae_is_told_by_name() -> None:
    """A name that is not there is an error of its own, and no member."""
    catalog = Catalog.load()
    assert "nope" not in catalog
    with pytest.raises(UnknownVaeError, match="nope"):
        catalog["nope"]


def test_a_file_adds_and_overrides(tmp_path: Path) -> None:
    """A user's entries stand beside the built-in ones, and replace those of the same name."""
    catalog = load(
        tmp_path,
        """
        [vaes.my-sd]
        family = "sd"
        source = "someone/some-vae"
        subfolder = "vae"
        revision = "abc123"
        dtype = "float16"

        [vaes.sdxl]
        family = "flux"
        source = "/models/mine"
        latent_channels = 16
        spatial_factor = 16

        [vaes."wan-2.2"]
        family = "wan"
        source = "someone/some-video-vae"
        latent_channels = 48
        spatial_factor = 16
        temporal_factor = 4
        """,
    )
    assert len(catalog) == len(Catalog.load()) + 2
    assert catalog["wan-2.2"].facts == VaeFacts(48, 16, 4)
    mine = catalog["my-sd"]
    assert (mine.family, mine.source, mine.subfolder) == ("sd", "someone/some-vae", "vae")
    assert (mine.revision, mine.dtype) == ("abc123", "float16")
    assert (mine.folder, mine.facts) == (None, None)
    overridden = catalog["sdxl"]
    assert (overridden.family, overridden.source) == ("flux", "/models/mine")
    assert overridden.facts == VaeFacts(16, 16)
    assert catalog["flux"] == Catalog.load()["flux"]


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    """A file without entries is a catalogue too."""
    assert dict(load(tmp_path, "# nothing yet\n")) == dict(Catalog.load())


def test_the_facts_of_a_folder_are_read(tmp_path: Path) -> None:
    """Where a source is a folder, channels and factor come from its own config.json."""
    make_tiny(16).save_pretrained(tmp_path / "root" / "vae")
    path = write_catalog(
        tmp_path,
        {
            "direct": {"family": "sd", "source": str(tmp_path / "root" / "vae")},
            "below": {"family": "sd", "source": str(tmp_path / "root"), "subfolder": "vae"},
            "missing": {"family": "sd", "source": str(tmp_path / "nowhere")},
        },
    )
    catalog = Catalog.load(path)
    assert catalog["direct"].facts == catalog["below"].facts == VaeFacts(16, 8)
    assert catalog["below"].folder == tmp_path / "root" / "vae"
    assert catalog["missing"].facts is None


def test_home_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A source below `~` is a folder of the user's."""
    monkeypatch.setenv("HOME", str(tmp_path))
    catalog = load(tmp_path, '[vaes.mine]\nfamily = "sd"\nsource = "~/vae"')
    assert catalog["mine"].folder == tmp_path / "vae"


@pytest.mark.parametrize(
    "config",
    [
        *("no json", "{}", "[]", "5", "null", '{"latent_channels": 4}'),
        '{"latent_channels": 4, "block_out_channels": 8}',
        '{"latent_channels": "4", "block_out_channels": [8, 8]}',
    ],
)
def test_an_unreadable_config_is_left_to_the_worker(tmp_path: Path, config: str) -> None:
    """The service does not fail where a folder's config says nothing; the worker will tell."""
    (tmp_path / "config.json").write_text(config)
    path = write_catalog(tmp_path, {"odd": {"family": "sd", "source": str(tmp_path)}})
    assert Catalog.load(path)["odd"].facts is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[vaes.x", ("catalog.toml",)),
        ("x = ", ("catalog.toml",)),
        ('[vae.x]\nfamily = "sd"', ("catalog.toml", "[vaes.NAME]")),
        ("vaes = 5", ("catalog.toml", "[vaes.NAME]")),
        ('vaes.x = "sd"', ("vaes.x", "table")),
        ('[vaes.x]\nfamily = "sd"', ("vaes.x", "source")),
        ('[vaes.x]\nsource = "a/b"', ("vaes.x", "family")),
        ('[vaes.x]\nfamily = "sd"\nsource = ""', ("vaes.x", "source")),
        ('[vaes.x]\nfamily = "sdx"\nsource = "a/b"', ("vaes.x", "'sdx'", "flux, flux2", "wan")),
        ('[vaes.x]\nfamily = "sd"\nsource = "a/b"\ncolour = "red"', ("vaes.x", "colour")),
        ('[vaes.x]\nfamily = "sd"\nsource = "a/b"\ndtype = "int8"', ("vaes.x", "dtype")),
        ('[vaes.x]\nfamily = "sd"\nsource = "a/b"\nlatent_channels = 0', ("latent_channels",)),
        ('[vaes.x]\nfamily = "wan"\nsource = "a/b"\ntemporal_factor = 0', ("temporal_factor",)),
        (
            '[vaes.x]\nfamily = "wan"\nsource = "a/b"\ntemporal_tiles = false',
            ("temporal_tiles", "wan"),
        ),
        ('[vaes.x]\nfamily = "sd"\nsource = 5', ("vaes.x", "source")),
        ('[vaes.x]\nname = "y"\nfamily = "sd"\nsource = "a/b"', ("vaes.x", "name")),
    ],
)
def test_faults_are_named(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    """A file that cannot be used is refused with its name, the entry, the key and the reason."""
    said = fault(tmp_path, text)
    assert str(tmp_path / "catalog.toml") in said
    for word in words:
        assert word in said


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A file that is not there, no file at all or no text is refused with its name."""
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "missing.toml", tmp_path, tmp_path / "binary.toml"):
        with pytest.raises(CatalogError) as caught:
            Catalog.load(path)
        assert str(path) in str(caught.value)
