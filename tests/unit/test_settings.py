"""Settings: read from the environment and `.env`, refused by name and reason."""

from __future__ import annotations

import base64
import hashlib
import os
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError

from darkroom_infra.settings import RateLimit, Settings, SettingsError, hash_key


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, and an environment without our variables."""
    for name in os.environ:
        if name.upper().startswith("DARKROOM_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Settings:
    """Load settings from some variables, given without their prefix."""
    for name, value in variables.items():
        monkeypatch.setenv(f"DARKROOM_{name}", value)
    return Settings.load()


def fault(monkeypatch: pytest.MonkeyPatch, **variables: str) -> str:
    """Give what is said of settings that are refused."""
    with pytest.raises(SettingsError) as caught:
        load(monkeypatch, **variables)
    return str(caught.value)


def test_defaults() -> None:
    """Without any variable the documented defaults hold."""
    settings = Settings.load()
    assert settings.url == "http://127.0.0.1:8000"
    assert settings.api_keys == {}
    assert settings.catalog is None
    assert (settings.device, settings.dtype) == ("auto", "auto")
    assert (settings.result_ttl, settings.lease_seconds, settings.max_attempts) == (86400, 15, 3)


def test_variables_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each variable is the setting of its name, with the right type."""
    settings = load(
        monkeypatch,
        REDIS_URL="rediss://example.com:6380/3",
        S3_BUCKET="mine",
        CATALOG="/etc/darkroom.toml",
        DTYPE="float16",
        MAX_PIXELS="1048576",
        LEASE_SECONDS="2.5",
        WEBHOOK_ALLOW="10.0.0.0/8, 127.0.0.0/8,",
    )
    assert settings.redis_url == "rediss://example.com:6380/3"
    assert settings.s3_bucket == "mine"
    assert settings.catalog == Path("/etc/darkroom.toml")
    assert (settings.dtype, settings.max_pixels, settings.lease_seconds) == (
        "float16",
        1048576,
        2.5,
    )
    assert settings.webhook_allow == ("10.0.0.0/8", "127.0.0.0/8")


def test_a_rate_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rate limit is so many requests in so many seconds."""
    limit = load(monkeypatch, RATE_LIMIT="600 / 60").rate_limit
    assert limit == RateLimit(600, timedelta(minutes=1))
    assert load(monkeypatch, RATE_LIMIT="").rate_limit is None


def test_empty_variables_are_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that is there but empty, as compose files make them, leaves the default."""
    settings = load(monkeypatch, MAX_PIXELS="", API_KEYS="", S3_ENDPOINT_URL="")
    assert settings == Settings.load()
    assert (settings.max_pixels, settings.api_keys) == (1 << 27, {})


def test_the_file_is_read_and_the_environment_wins(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`.env` in the working folder counts, below the environment; others' lines are left alone."""
    (folder / ".env").write_text(
        "DARKROOM_S3_BUCKET=file\nDARKROOM_S3_REGION=eu-central-1\nPATH_OF_OTHERS=1\n"
    )
    settings = load(monkeypatch, S3_BUCKET="environment")
    assert (settings.s3_bucket, settings.s3_region) == ("environment", "eu-central-1")


def test_command_line_options_win(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command passes on stands above the environment."""
    monkeypatch.setenv("DARKROOM_S3_BUCKET", "environment")
    assert Settings.load(s3_bucket="option").s3_bucket == "option"


@pytest.mark.parametrize("name", ["REDIS_URI", "MAX_PIXEL", "ANYTHING"])
def test_unknown_variables_are_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A misspelt variable is refused by its name, with the known ones."""
    said = fault(monkeypatch, **{name: "1"})
    assert said.startswith(f"DARKROOM_{name}: ")
    assert "DARKROOM_REDIS_URL" in said


def test_unknown_lines_of_the_file_are_refused(folder: Path) -> None:
    """So is a misspelt line of `.env`."""
    (folder / ".env").write_text("DARKROOM_BUCKET=mine\n")
    with pytest.raises(SettingsError, match="DARKROOM_BUCKET: no such setting"):
        Settings.load()


def test_every_unknown_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them at once, so that one start is enough to see them."""
    said = fault(monkeypatch, ONE="1", TWO="2")
    assert "DARKROOM_ONE" in said
    assert "DARKROOM_TWO" in said


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("REDIS_URL", "http://example.com", "rediss"),
        ("DTYPE", "int8", "float32"),
        ("RESULT_TTL", "0", "greater"),
        ("RESULT_TTL", "soon", "integer"),
        ("MAX_LATENTS_BYTES", "-1", "greater"),
        ("MAX_PIXELS", "63", "64"),
        ("MAX_QUEUED", "0", "greater"),
        ("RATE_LIMIT", "600", "REQUESTS/SECONDS"),
        ("RATE_LIMIT", "600/minute", "REQUESTS/SECONDS"),
        ("RATE_LIMIT", "0/60", "at least one"),
        ("RATE_LIMIT", "600/0", "one second"),
        ("RATE_LIMIT", "600/inf", "REQUESTS/SECONDS"),
        ("MAX_ATTEMPTS", "0", "greater"),
        ("LEASE_SECONDS", "0", "greater"),
        ("LEASE_SECONDS", "nan", ""),
        ("LEASE_SECONDS", "inf", ""),
        ("API_KEYS", "secret", "name:key"),
        ("API_KEYS", "anna:", "name:key"),
        ("API_KEYS", ":secret", "name:key"),
        ("API_KEYS", "anna:one,anna:two", "'anna' appears twice"),
        ("API_KEYS", "anna:same,ben:same", ""),
        ("API_KEYS", "anna:sha256:0123", ""),
        ("WEBHOOK_SECRET", "plain", "whsec_"),
        ("WEBHOOK_SECRET", "whsec_!", "base64"),
        ("WEBHOOK_SECRET", "whsec_" + base64.b64encode(bytes(23)).decode(), "24 to 64"),
        ("WEBHOOK_SECRET", "whsec_" + base64.b64encode(bytes(65)).decode(), "24 to 64"),
        ("WEBHOOK_SECRET", base64.b64encode(bytes(32)).decode(), "whsec_"),
        ("WEBHOOK_ALLOW", "everything", ""),
        ("URL", "darkroom.example.com", ""),
        ("S3_ENDPOINT_URL", "127.0.0.1:9000", ""),
    ],
)
def test_invalid_values_are_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, reason: str
) -> None:
    """A value that cannot be is refused at start, with the variable and the reason."""
    said = fault(monkeypatch, **{name: value})
    assert f"DARKROOM_{name}: " in said
    assert reason in said


def test_every_invalid_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them at once."""
    said = fault(monkeypatch, MAX_PIXELS="x", MAX_ATTEMPTS="0")
    assert "DARKROOM_MAX_PIXELS: " in said
    assert "DARKROOM_MAX_ATTEMPTS: " in said


def test_secrets_are_never_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a refusal nor a setting's text shows a key."""
    assert "hush" not in fault(monkeypatch, API_KEYS="anna:hush-1,anna:hush-2")
    assert "hush" not in fault(monkeypatch, API_KEYS="hush", WEBHOOK_SECRET="whsec_hush!")
    monkeypatch.delenv("DARKROOM_WEBHOOK_SECRET")
    settings = load(monkeypatch, API_KEY="hush", API_KEYS="a:hush", S3_SECRET_ACCESS_KEY="hush")
    assert "hush" not in repr(settings)


def test_keys_are_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys are held by their SHA-256; a hash may be given instead of the key."""
    digest = hashlib.sha256(b"two").hexdigest()
    settings = load(monkeypatch, API_KEYS=f" anna:one, ben:sha256:{digest} ,carl:with:colon,")
    assert settings.api_keys == {
        hash_key("one"): "anna",
        hash_key("two"): "ben",
        hash_key("with:colon"): "carl",
    }
    assert hash_key("two") == f"sha256:{digest}"
    assert hash_key(hash_key("two")) == hash_key("two")


def test_a_webhook_secret_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret of the Standard Webhooks form passes as it is."""
    secret = "whsec_" + base64.b64encode(bytes(24)).decode()
    kept = load(monkeypatch, WEBHOOK_SECRET=secret).webhook_secret
    assert kept is not None
    assert kept.get_secret_value() == secret


def test_settings_cannot_be_changed() -> None:
    """Settings are built once by each program."""
    settings = Settings.load()
    with pytest.raises(ValidationError):
        settings.max_pixels = 5  # type: ignore[misc]
