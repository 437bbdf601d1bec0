"""The web page at `/`, in a real browser.

Chromium is looked for on the path. Where there is none these tests are skipped, unless
`REQUIRE_BROWSER` is set.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Locator, Page, Route, expect, sync_playwright

from tests.conftest import Deployment, Servers, eventually, make_latents
from tests.contract.conftest import SAFETENSORS

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
# As root there is no sandbox; and nothing is to be asked of the outside.
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
HOSTILE = "<img src=x onerror=alert(1)>.safetensors"

expect.set_options(timeout=30_000)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser, for as long as these tests take."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        if os.environ.get("REQUIRE_BROWSER"):
            pytest.fail(f"none of {', '.join(PROGRAMS)} is on the path")
        pytest.skip(f"none of {', '.join(PROGRAMS)} is on the path")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page with a store of its own, on which no script may fail."""
    context = browser.new_context()
    page = context.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    yield page
    context.close()
    assert not faults


def open_page(page: Page, deployment: Deployment) -> None:
    """Open the page, and wait until it knows the catalogue."""
    page.goto(deployment.api_url + "/")
    expect(
        page.get_by_label(re.compile("^VAE")).locator("option", has_text="demo")
    ).to_be_attached()


def card(page: Page, title: str) -> Locator:
    """Find the newest job with a title."""
    heading = page.get_by_role("heading", name=title, exact=True)
    return page.locator("#jobs > li", has=heading).first


def latents_file(folder: Path, name: str, *shape: int) -> Path:
    """Write latents into a file."""
    path = folder / name
    path.write_bytes(make_latents(*shape))
    return path


def submit(page: Page, *paths: Path) -> None:
    """Choose files, and press the button."""
    page.get_by_label("Drop latents here").set_input_files(paths)
    page.get_by_label(re.compile("^VAE")).select_option("demo")
    page.get_by_role("button", name="Develop").click()


def width(picture: Locator) -> int:
    """Give the width of a picture that was loaded, 0 of one that was not."""
    return int(picture.evaluate("picture => picture.naturalWidth"))


def test_files_become_pictures(page: Page, installation: Deployment, tmp_path: Path) -> None:
    """Files that are chosen become a job each, and each job shows what it made, by itself."""
    open_page(page, installation)
    submit(
        page,
        latents_file(tmp_path, "one.safetensors", 1, 4, 8, 16),
        latents_file(tmp_path, "two.latent", 2, 4, 8, 8),
    )
    expect(page.get_by_text("2 of 2 accepted")).to_be_visible()
    one, two = card(page, "one.safetensors"), card(page, "two.latent")
    expect(one.get_by_text("succeeded", exact=True)).to_be_visible()
    expect(one.get_by_text("128 \u00d7 64")).to_be_visible()
    expect(two.get_by_text("succeeded", exact=True)).to_be_visible()
    expect(one.get_by_role("img")).to_have_count(1)
    expect(two.get_by_role("img")).to_have_count(2)
    eventually(lambda: width(one.get_by_role("img")) == 128)


def test_what_is_chosen_meanwhile_stays(page: Page, intake: Deployment, tmp_path: Path) -> None:
    """While files are under way others can be chosen; neither they nor new options touch those."""
    open_page(page, intake)
    held: list[Route] = []
    page.route(
        "**/v1/jobs?*",
        lambda route: held.append(route) if route.request.method == "POST" else route.continue_(),
    )
    with page.expect_request(lambda request: request.method == "POST"):
        submit(page, latents_file(tmp_path, "first.safetensors", 1, 4, 8, 8))
    second = latents_file(tmp_path, "second.safetensors", 1, 4, 8, 8)
    page.get_by_label("Drop latents here").set_input_files(second)
    page.get_by_label(re.compile("^Priority")).select_option("batch")
    held[0].continue_()
    expect(page.get_by_text("1 of 1 accepted")).to_be_visible()
    expect(page.locator("#drop")).to_contain_text("second.safetensors")
    job_id = card(page, "first.safetensors").get_attribute("data-id")
    assert httpx.get(f"{intake.api_url}/v1/jobs/{job_id}").json()["priority"] == "normal"


def test_files_can_be_dropped(page: Page, installation: Deployment) -> None:
    """Files that are dropped are chosen, and the page tells their names."""
    open_page(page, installation)
    transfer = page.evaluate_handle(
        """() => {
            const transfer = new DataTransfer();
            transfer.items.add(new File(["latents"], "dropped.safetensors"));
            return transfer;
        }"""
    )
    page.locator("#drop").dispatch_event("drop", {"dataTransfer": transfer})
    expect(page.locator("#drop")).to_contain_text("dropped.safetensors")


def test_refusals_name_the_file(page: Page, intake: Deployment, tmp_path: Path) -> None:
    """What the service refuses is told for each file in the service's words; the rest goes on."""
    open_page(page, intake)
    wrong = latents_file(tmp_path, "wrong.safetensors", 1, 5, 8, 8)
    submit(page, wrong, latents_file(tmp_path, "right.safetensors", 1, 4, 8, 8))
    answer = httpx.post(
        f"{intake.api_url}/v1/jobs?vae=demo", content=wrong.read_bytes(), headers=SAFETENSORS
    )
    detail = answer.json()["detail"]
    expect(page.get_by_role("alert")).to_have_text(f"wrong.safetensors: {detail}")
    expect(page.get_by_text("1 of 2 accepted")).to_be_visible()
    expect(card(page, "right.safetensors").get_by_text("queued", exact=True)).to_be_visible()


def test_jobs_are_canceled_and_deleted(page: Page, intake: Deployment, tmp_path: Path) -> None:
    """A job that waits can be canceled; any can be deleted, once confirmed, and is gone then."""
    open_page(page, intake)
    submit(page, latents_file(tmp_path, "unwanted.safetensors", 1, 4, 8, 8))
    job = card(page, "unwanted.safetensors")
    job.get_by_role("button", name="Cancel").click()
    expect(job.get_by_text("canceled", exact=True)).to_be_visible()
    expect(job.get_by_role("button", name="Cancel")).to_be_hidden()
    job_id = job.get_attribute("data-id")
    page.once("dialog", lambda question: question.dismiss())
    job.get_by_role("button", name="Delete").click()
    expect(job).to_be_visible()
    page.once("dialog", lambda question: question.accept())
    job.get_by_role("button", name="Delete").click()
    expect(page.locator(f"[data-id='{job_id}']")).to_have_count(0)
    answer = httpx.get(f"{intake.api_url}/v1/jobs/{job_id}")
    assert answer.status_code in (404, 410) or answer.json()["status"] == "expired"


def test_the_list_can_be_narrowed(page: Page, intake: Deployment, tmp_path: Path) -> None:
    """The list shows the jobs of one status only, if asked to."""
    open_page(page, intake)
    submit(page, latents_file(tmp_path, "waiting.safetensors", 1, 4, 8, 8))
    expect(card(page, "waiting.safetensors")).to_be_visible()
    page.get_by_label("Show").select_option("succeeded")
    expect(card(page, "waiting.safetensors")).to_have_count(0)
    expect(page.get_by_text("No jobs.")).to_be_visible()
    page.get_by_label("Show").select_option("queued")
    expect(card(page, "waiting.safetensors")).to_be_visible()


def test_what_callers_write_is_text(page: Page, intake: Deployment) -> None:
    """Names and metadata from outside are shown as they are, and never run or break the page."""
    for metadata in ('{"file": {"no": "string"}}', '{"file": "' + HOSTILE + '"}'):
        httpx.post(
            f"{intake.api_url}/v1/jobs",
            params={"vae": "demo", "metadata": metadata},
            content=make_latents(1, 4, 8, 8),
            headers=SAFETENSORS,
        ).raise_for_status()
    page.on("dialog", lambda dialog: pytest.fail("a script of a caller ran"))
    open_page(page, intake)
    expect(card(page, HOSTILE)).to_be_visible()
    expect(page.locator("#jobs img[src=x]")).to_have_count(0)


def test_nothing_comes_from_elsewhere(page: Page, installation: Deployment, tmp_path: Path) -> None:
    """The page needs nothing but the service and its store, and its own policy lets it work."""
    asked, complaints = set[str](), list[str]()
    page.on("request", lambda request: asked.add(request.url.split("/")[2]))
    page.on("console", lambda message: complaints.append(message.text))
    open_page(page, installation)
    submit(page, latents_file(tmp_path, "own.safetensors", 1, 4, 8, 8))
    picture = card(page, "own.safetensors").get_by_role("img")
    eventually(lambda: width(picture) == 64)
    store = installation.environment["DARKROOM_S3_ENDPOINT_URL"].split("/")[2]
    assert asked == {installation.api_url.split("/")[2], store}
    assert not [text for text in complaints if "Content Security Policy" in text]


def test_pictures_without_the_store(page: Page, installation: Deployment, tmp_path: Path) -> None:
    """Where the store is out of the browser's reach, pictures come through the service."""
    page.route(re.compile(re.escape(installation.environment["DARKROOM_S3_ENDPOINT_URL"])), abort)
    open_page(page, installation)
    submit(page, latents_file(tmp_path, "inland.safetensors", 1, 4, 8, 8))
    picture = card(page, "inland.safetensors").get_by_role("img")
    eventually(lambda: width(picture) == 64)
    assert str(picture.get_attribute("src")).startswith("blob:")


def test_a_service_that_goes_and_comes(page: Page, intake: Deployment) -> None:
    """While nothing answers the page says so, and goes on by itself when something does."""
    open_page(page, intake)
    page.route("**/v1/**", abort)
    expect(page.get_by_text("The service does not answer.")).to_be_visible()
    page.unroute("**/v1/**")
    expect(page.get_by_text("The service does not answer.")).to_be_hidden()
    broken = {"status": 200, "content_type": "application/json", "body": '{"results": ['}
    page.route("**/v1/**", lambda route: route.fulfill(**broken))
    expect(page.get_by_text("The service does not answer.")).to_be_visible()
    page.unroute("**/v1/**")
    expect(page.get_by_text("The service does not answer.")).to_be_hidden()


def test_a_store_that_is_away(page: Page, intake: Deployment) -> None:
    """While the service is not ready the page says so, and shows what it can."""
    page.route("**/readyz", lambda route: route.fulfill(status=503, body="{}"))
    open_page(page, intake)
    expect(page.get_by_text("A part of the service cannot be reached")).to_be_visible()
    expect(page.locator("[data-figure=workers]")).to_have_text("0")


def test_a_key_is_asked_for(page: Page, servers: Servers, tmp_path: Path, browser: Browser) -> None:
    """Where keys are set the page asks for one, keeps it for its tab alone, and can forget it."""
    with servers.deploy(tmp_path, api_keys="anna:sesame") as deployment:
        deployment.start_api()
        page.goto(deployment.api_url + "/")
        dialog = page.get_by_role("dialog")
        for key, welcome in (("wrong", False), ("sesame", True)):
            dialog.get_by_label("API key").fill(key)
            dialog.get_by_role("button", name="Enter").click()
            expect(dialog.get_by_text("not known here")).to_be_visible(visible=not welcome)
        expect(dialog).to_be_hidden()
        expect(page.get_by_text("No jobs.")).to_be_visible()
        submit(page, latents_file(tmp_path, "mine.safetensors", 1, 4, 8, 8))
        expect(page.get_by_text("1 of 1 accepted")).to_be_visible()
        page.reload()
        expect(card(page, "mine.safetensors")).to_be_visible()
        page.get_by_role("button", name="Forget the key").click()
        expect(dialog).to_be_visible()
        expect(page.locator("#jobs > li")).to_have_count(0)


def abort(route: Route) -> None:
    """Let a request fail as on a network that is down."""
    route.abort()
