"""S3 that is away, slow, broken, or cut off in the middle; and a store that is too weak."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping

import httpx

from tests.conftest import eventually
from tests.faults.load import Load
from tests.faults.outcome import Outcome, judge
from tests.faults.processes import Service
from tests.faults.proxy import Trouble
from tests.faults.servers import SeaweedFS, WeakStore
from tests.faults.site import Lab, Site, Store

TROUBLES: Mapping[str, Trouble] = {
    "away": Trouble(away=True),
    "answering 500": Trouble(answer=500),
    "answering 503": Trouble(answer=503),
    "full": Trouble(answer=507),
    "slow": Trouble(rate=2_000, delay=0.2),
    "silent": Trouble(silent=True),
}
CUTS: Mapping[str, Trouble] = {
    "cut in a PUT": Trouble(where=b"PUT ", cut_request_after=400),
    "cut before the answer to a PUT": Trouble(where=b"PUT ", cut_answer_after=0),
    "cut in an answer": Trouble(where=b"GET ", cut_answer_after=300),
}


def troubled(site: Site, seconds: float, names: tuple[str, ...] = tuple(TROUBLES)) -> Outcome:
    """S3 is in one trouble after the other, each for some time, while callers go on."""
    outcome = Outcome()
    with Load(site, backlog=60) as load:
        load.order()
        for name in names:
            load.wait_finished(5)
            site.s3_line.disturb(TROUBLES[name])
            threading.Event().wait(seconds)
            site.s3_line.heal()
            since = time.monotonic()
            load.wait_finished(1)
            outcome.measured(f"resumed after {name}", time.monotonic() - since)
        load.cease()
        load.settle()
    outcome.add(judge(site, load.journal))
    outcome.counts["troubles"] = len(names)
    return outcome


def cut(site: Site, times: int) -> Outcome:
    """Connections to S3 break within a PUT, or between a PUT and its answer, or in an answer."""
    disturbed = 0
    with Load(site, backlog=60) as load:
        load.order()
        for trouble in CUTS.values():
            for _ in range(times):
                load.wait_finished(2)
                before = site.s3_line.counts.disturbed
                site.s3_line.disturb(Trouble(**{**vars(trouble), "times": 6}), cut=False)
                eventually(
                    lambda before=before: site.s3_line.counts.disturbed >= before + 6,  # type: ignore[misc]
                    60,
                )
            disturbed += 6 * times
        site.s3_line.heal()
        load.cease()
        load.settle()
    outcome = judge(site, load.journal)
    outcome.counts["cuts"] = disturbed
    return outcome


def killed(lab: Lab, kills: int) -> Outcome:
    """Kill -9 of SeaweedFS under load: what it has answered is there again when it is back."""
    server = SeaweedFS(lab.folder / "seaweedfs")
    server.start()
    own = Lab(
        Store(server.url, server.keys.access_key_id, server.keys.secret_access_key), lab.folder
    )
    resumed = []
    try:
        with own.site() as site:
            with Load(site, backlog=60) as load:
                load.order()
                for _ in range(kills):
                    load.wait_finished(10)
                    server.kill()
                    server.start()
                    since = time.monotonic()
                    load.wait_finished(1)
                    resumed.append(time.monotonic() - since)
                load.cease()
                load.settle()
            outcome = judge(site, load.journal)
    finally:
        server.kill()
    outcome.counts["kills"] = kills
    outcome.measured("resumed", resumed)
    return outcome


def weak(lab: Lab) -> Outcome:
    """A store without conditional PUT is named by `readyz` and by `darkroom doctor`."""
    outcome = Outcome()
    server = WeakStore(lab.folder / "weak")
    server.start()
    try:
        lab = Lab(Store(server.url, *server.keys), lab.folder)
        with lab.site(workers=1) as site:
            (url,) = site.urls()
            warnings = eventually(lambda: httpx.get(f"{url}/readyz").json()["warnings"], 60)
            if not any("conditional PUT" in warning for warning in warnings):
                outcome.violate("weak", f"readyz warns of {warnings}")
            doctor = Service("doctor", ["doctor", "--json"], site.environment, site.folder)
            said = doctor.run().log.read_text()
            findings = json.loads(said[said.index("[") : said.rindex("]") + 1])
            s3 = [finding for finding in findings if finding["part"] == "s3"]
            if not any("conditional PUT" in f["detail"] and f["level"] == "warning" for f in s3):
                outcome.violate("weak", f"doctor says {s3}")
            with Load(site) as load:
                load.order(10)
                load.settle()
            outcome.add(judge(site, load.journal))
    finally:
        server.close()
    outcome.counts["detected"] = 2 - len(outcome.violations)
    return outcome
