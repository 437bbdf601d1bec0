"""The catalogue: which VAEs there are, where they come from and what fits them."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .families import FAMILIES, Family, VaeFacts

PACKAGE_SCHEME = "package:"
"""Marks a source that lies inside an installed package: `package:NAME/FOLDER`."""


class CatalogError(ValueError):
    """A catalogue that cannot be used. The text names the file, the entry and the reason."""


class UnknownVaeError(KeyError):
    """A name that the catalogue does not have."""


class VaeEntry(BaseModel):
    """One VAE: its family, and where `from_pretrained` finds it."""

    model_config = ConfigDict(frozen=True, extra="forbid", ignored_types=(cached_property,))

    name: str
    family: str
    source: str = Field(min_length=1)
    subfolder: str | None = None
    revision: str | None = None
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    latent_channels: int | None = Field(None, ge=1)
    spatial_factor: int | None = Field(None, ge=1)
    temporal_factor: int = Field(1, ge=1)
    temporal_tiles: bool = True

    @model_validator(mode="after")
    def _check_family(self) -> VaeEntry:
        if self.family not in FAMILIES:
            raise ValueError(
                f"unknown family {self.family!r}: one of {', '.join(sorted(FAMILIES))}"
            )
        if not self.temporal_tiles and not self.layout.tiles_frames:
            raise ValueError(f"temporal_tiles: VAEs of family {self.family} make no such tiles")
        return self

    @property
    def layout(self) -> Family:
        """How this VAE's latents are laid out and scaled."""
        return FAMILIES[self.family]

    @property
    def folder(self) -> Path | None:
        """The local folder with the VAE, or None where the source is a hub repository.

        A source is a folder if it is marked as one (a path that is absolute or starts with a dot)
        or if such a folder exists; everything else is `OWNER/NAME` on the hub.
        """
        if self.source.startswith(PACKAGE_SCHEME):
            package, _, inside = self.source.removeprefix(PACKAGE_SCHEME).partition("/")
            root = Path(str(resources.files(package))) / inside
        elif self.source.startswith(("/", ".", "~")) or Path(self.source).is_dir():
            root = Path(self.source).expanduser()
        else:
            return None
        return root / self.subfolder if self.subfolder else root

    @cached_property
    def facts(self) -> VaeFacts | None:
        """What latents are checked against, or None while nobody has seen the VAE.

        From the entry itself, else from the `config.json` of a local folder. An API need not have
        the folder: then the worker finds out, and fails the job with the reason.
        """
        if self.latent_channels is not None and self.spatial_factor is not None:
            return VaeFacts(self.latent_channels, self.spatial_factor, self.temporal_factor)
        try:
            return self.layout.facts(self.config) if self.config is not None else None
        except ValueError:
            return None

    @cached_property
    def config(self) -> Mapping[str, Any] | None:
        """The `config.json` of a local folder; None where the API has none to read."""
        if self.folder is None:
            return None
        try:
            config = json.loads((self.folder / "config.json").read_text())
        except (OSError, ValueError):
            return None
        return config if isinstance(config, dict) else None


class Catalog(Mapping[str, VaeEntry]):
    """The VAEs by name, the built-in ones overridden by a user's file."""

    def __init__(self, entries: Mapping[str, VaeEntry]) -> None:
        self._entries = dict(entries)

    @classmethod
    def load(cls, path: Path | None = None) -> Catalog:
        """Read the built-in catalogue and the user's file over it.

        Raises:
            CatalogError: the file is missing, no TOML, or has an entry that cannot be used.
        """
        built_in = resources.files(__package__).joinpath("catalog.toml").read_text()
        entries = _parse(built_in, "the built-in catalogue")
        if path is not None:
            try:
                text = path.read_text()
            except (OSError, UnicodeDecodeError) as error:
                raise CatalogError(f"{path}: {error}") from error
            entries |= _parse(text, str(path))
        return cls(entries)

    def __getitem__(self, name: str) -> VaeEntry:
        try:
            return self._entries[name]
        except KeyError:
            raise UnknownVaeError(name) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def _parse(text: str, origin: str) -> dict[str, VaeEntry]:
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise CatalogError(f"{origin}: {error}") from error
    tables = document.pop("vaes", {})
    if document or not isinstance(tables, dict):
        raise CatalogError(f"{origin}: only tables [vaes.NAME] are expected")
    return {name: _entry(name, table, origin) for name, table in tables.items()}


def _entry(name: str, table: object, origin: str) -> VaeEntry:
    if not isinstance(table, dict):
        raise CatalogError(f"{origin}: vaes.{name}: a table was expected")
    try:
        return VaeEntry(name=name, **table)
    except (ValidationError, TypeError) as error:
        reasons = str(error)
        if isinstance(error, ValidationError):
            reasons = "; ".join(
                f"{'.'.join(map(str, fault['loc'])) or 'entry'}: "
                f"{fault['msg'].removeprefix('Value error, ')}"
                for fault in error.errors(include_url=False)
            )
        raise CatalogError(f"{origin}: vaes.{name}: {reasons}") from None
