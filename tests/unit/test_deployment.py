"""The deployment files agree with the program, and with each other."""

from __future__ import annotations

import importlib.util
import inspect
import re
import socket
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest
from ruamel.yaml import YAML

from darkroom_api.commands import api
from darkroom_infra.settings import PREFIX, Settings

ROOT = Path(__file__).resolve().parents[2]
COMPOSE_FILE = ROOT / "docker-compose.yml"
ENV_EXAMPLE = ROOT / ".env.example"
DOCKERFILES = sorted((ROOT / "infra/docker").glob("*.Dockerfile"))
COMPOSE: dict[str, Any] = YAML(typ="safe").load(COMPOSE_FILE.read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
BUILT = {name: service for name, service in SERVICES.items() if "build" in service}
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

KNOWN = {PREFIX + name.upper() for name in Settings.model_fields}
PINNED = re.compile(r"[\w./-]+:\d+\.\d+(\.\d+)?(-[a-z][\w-]*)?(@sha256:[0-9a-f]{64})?")

every_service = pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)
every_built = pytest.mark.parametrize("service", BUILT.values(), ids=BUILT)
every_dockerfile = pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)


def instructions(dockerfile: Path, name: str) -> list[str]:
    """List the arguments of each use of an instruction, its continued lines joined."""
    text = re.sub(r"\\\n\s*", " ", dockerfile.read_text())
    return re.findall(rf"^{name} +(.*)$", text, re.MULTILINE)


def seconds(duration: str) -> float:
    """Read a duration as compose writes it; only seconds are used here."""
    return float(duration.removesuffix("s"))


@pytest.mark.parametrize("path", [COMPOSE_FILE, ENV_EXAMPLE], ids=lambda path: path.name)
def test_only_known_settings_are_named(path: Path) -> None:
    """No setting is misspelt or gone: the program would refuse to start because of it."""
    assert set(re.findall(rf"\b{PREFIX}[A-Z0-9_]+\b", path.read_text())) <= KNOWN


def test_every_variable_of_the_compose_file_is_in_the_example() -> None:
    """Whoever fills in `.env.example` sees everything that can be set."""
    used = set(re.findall(r"\$\{(\w+)", COMPOSE_FILE.read_text()))
    shown = set(re.findall(r"^(?:# )?([A-Z][A-Z0-9_]*)=", ENV_EXAMPLE.read_text(), re.MULTILINE))
    assert used == shown


@pytest.mark.parametrize(
    "name",
    ["DARKROOM_API_KEYS", "DARKROOM_S3_ACCESS_KEY_ID", "DARKROOM_S3_SECRET_ACCESS_KEY"],
)
def test_keys_have_no_default(name: str) -> None:
    """Nothing starts with a key that everybody knows: compose stops and names the variable."""
    assert re.search(rf"^{name}=$", ENV_EXAMPLE.read_text(), re.MULTILINE)
    uses = re.findall(rf"\$\{{{name}(..)", COMPOSE_FILE.read_text())
    assert set(uses) == {":?"}


@every_service
def test_services_come_back_and_tell_their_health(service: dict[str, Any]) -> None:
    """A service that dies is started again, and one that does not work can be seen."""
    assert service["restart"] == "unless-stopped"
    assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")


@every_service
def test_services_have_few_rights(service: dict[str, Any]) -> None:
    """An intruder in a container finds a read-only system and no way to more rights."""
    assert service["read_only"] is True
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["cap_drop"] == ["ALL"]


@every_service
def test_ports_are_open_to_this_machine_only(service: dict[str, Any]) -> None:
    """Nothing is open to the network unless somebody asks for it."""
    for port in service.get("ports", ()):
        assert re.fullmatch(r"\$\{\w+:-127\.0\.0\.1:\d+\}:\d+", port)


@every_service
def test_images_are_pinned(service: dict[str, Any]) -> None:
    """The same file gives the same versions tomorrow: no `latest`, no major version alone."""
    assert PINNED.fullmatch(service["image"])


@every_dockerfile
def test_base_images_are_pinned(dockerfile: Path) -> None:
    """A rebuild starts from the same Python: the one base image has a patch version."""
    arguments = dict(line.partition("=")[::2] for line in instructions(dockerfile, "ARG"))
    assert PINNED.fullmatch(arguments["PYTHON_IMAGE"])
    assert re.search(r":\d+\.\d+\.\d+-", arguments["PYTHON_IMAGE"])
    assert {line.split()[0] for line in instructions(dockerfile, "FROM")} == {"${PYTHON_IMAGE}"}


@every_built
def test_built_images_carry_the_version(service: dict[str, Any]) -> None:
    """The tag of an image says which Darkroom is in it, so that a new version is built anew."""
    assert service["image"].rpartition(":")[2] == PROJECT["version"]


@every_built
def test_build_arguments_exist(service: dict[str, Any]) -> None:
    """The compose file's build arguments reach the Dockerfile that it names."""
    dockerfile = ROOT / service["build"]["dockerfile"]
    declared = {line.partition("=")[0] for line in instructions(dockerfile, "ARG")}
    assert set(service["build"].get("args", ())) <= declared


@every_dockerfile
def test_images_run_commands_that_exist(dockerfile: Path) -> None:
    """A container runs `darkroom` with a command and options that this version has."""
    assert instructions(dockerfile, "ENTRYPOINT") == ['["darkroom"]']
    (line,) = re.findall(r"^CMD \[(.*)\]$", dockerfile.read_text(), re.MULTILINE)
    command, *arguments = re.findall(r'"([^"]*)"', line)
    assert command in PROJECT["entry-points"]["darkroom.commands"]
    options = [argument for argument in arguments if argument.startswith("--")]
    known = inspect.signature(api).parameters if command == "api" else {}
    assert {option.removeprefix("--") for option in options} <= set(known)


@every_dockerfile
def test_images_do_not_run_as_root(dockerfile: Path) -> None:
    """Processes run under a fixed number, which volumes and policies can rely on."""
    assert instructions(dockerfile, "USER") == ["10001:10001"]


@every_dockerfile
def test_what_is_copied_is_there_and_sent(dockerfile: Path) -> None:
    """A build finds each file: in the repository, and not kept back by `.dockerignore`."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    sent = [line.removeprefix("!") for line in lines if line.startswith("!")]
    for line in instructions(dockerfile, "COPY"):
        if line.startswith("--from"):
            continue
        for source in line.split()[:-1]:
            assert (ROOT / source).exists()
            assert any(Path(source).is_relative_to(path) for path in sent), source


def test_only_the_gpu_worker_asks_for_a_gpu() -> None:
    """Without the profile nothing needs a GPU, and with it the worker refuses to go without."""
    assert [name for name, service in SERVICES.items() if "deploy" in service] == ["worker-gpu"]
    assert SERVICES["worker-gpu"]["profiles"] == ["gpu"]
    assert SERVICES["worker-gpu"]["environment"]["DARKROOM_DEVICE"] == "${DARKROOM_DEVICE:-cuda}"


@pytest.mark.parametrize("name", ["worker", "worker-gpu"])
def test_workers_may_finish(name: str) -> None:
    """A stopped worker is not killed while it still hands back its jobs."""
    grace = seconds(SERVICES[name]["stop_grace_period"])
    assert grace >= 15 + Settings.model_fields["drain_seconds"].default


def test_valkey_forgets_nothing() -> None:
    """Each write is on disk before it is answered, and no record is ever evicted."""
    command = SERVICES["valkey"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert options["--appendonly"] == "yes"
    assert options["--appendfsync"] == "always"
    assert options["--maxmemory-policy"] == "noeviction"
    assert f"valkey-data:{options['--dir']}" in SERVICES["valkey"]["volumes"]


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_settings_are_documented(name: str) -> None:
    """The table in the documentation has every setting with the default it really has."""
    text = (ROOT / "docs/deploy.md").read_text()
    rows = re.findall(rf"^\| `{name}` \| (.*?) \|", text, re.MULTILINE)
    default = Settings.model_fields[name.removeprefix(PREFIX).lower()].default
    if isinstance(default, float):
        default = f"{default:g}"
    assert rows == [f"`{default}`" if default else "none"]


@pytest.fixture(scope="module")
def health() -> ModuleType:
    """The script that a worker's container runs as its health check."""
    path = ROOT / "infra/docker/worker_health.py"
    spec = importlib.util.spec_from_file_location("worker_health", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Stub:
    """A process that only has a command line."""

    def __init__(self, *command: str) -> None:
        self.command = command

    def cmdline(self) -> list[str]:
        return list(self.command)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (("/opt/darkroom/bin/python", "/opt/darkroom/bin/darkroom", "worker"), True),
        (("/usr/bin/python3", "-m", "darkroom", "worker"), True),
        (("/opt/darkroom/bin/python", "/opt/darkroom/bin/darkroom", "doctor"), False),
        (("/sbin/docker-init", "--", "darkroom", "worker"), False),
        (("python", "/usr/local/lib/darkroom/worker_health.py"), False),
        ((), False),
    ],
)
def test_health_check_knows_the_worker(
    health: ModuleType, command: tuple[str, ...], expected: bool
) -> None:
    """A container is not healthy because of a process that is not its worker."""
    assert health.is_worker(Stub(*command)) is expected


def test_health_check_sees_the_connection(health: ModuleType) -> None:
    """A worker counts as healthy while it has a connection to Redis's port, and not after."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not health.is_connected(psutil.Process(), port)
        with socket.create_connection(server.getsockname()):
            assert health.is_connected(psutil.Process(), port)
        assert not health.is_connected(psutil.Process(), port)
