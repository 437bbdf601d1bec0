"""What has happened since Redis was last empty, counted beside the records for `GET /metrics`.

The scripts count into one hash, in the same step as what they count. A field is a kind, its labels
and at last a VAE's name, with spaces between: `ended succeeded sdxl`, `stage decode 7 sdxl`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from darkroom_wire.jobs import Status

from .model import Manifest

BOUNDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)
"""Upper bounds, in seconds, of the buckets for the steps of jobs; a last one has the rest."""

TOTAL: Final = "total"
"""The field of a step's whole time, in microseconds, has this in the bucket's place."""


@dataclass
class Durations:
    """How long a step took: how often as long as each bucket of `BOUNDS` says, and in all."""

    buckets: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    seconds: float = 0.0


@dataclass(frozen=True)
class Tallies:
    """The counts, by VAE, and how many webhook events wait to be sent.

    `ended` is by status too, where expired stands for deleted before the end; `stages` by the name
    of the step, as in a job's timings. `sends` counts attempts at sending webhooks by what they led
    to: `pending` is one after which another follows.
    """

    accepted: Mapping[str, int]
    ended: Mapping[tuple[str, ...], int]
    requeued: Mapping[str, int]
    stages: Mapping[tuple[str, str], Durations]
    sends: Mapping[str, int]
    events_waiting: int


def of_ending(manifest: Manifest) -> list[str | int]:
    """Tell what the end of a job adds: fields without the VAE, and numbers, by turns."""
    added: list[str | int] = [f"ended {manifest.status.value}", 1]
    if manifest.status is Status.SUCCEEDED:
        for stage, measured in manifest.timings.model_dump().items():
            # The wait is between the clocks of two machines, and a count must not fall.
            milliseconds = max(0.0, measured)
            bucket = bisect_left(BOUNDS, milliseconds / 1000)
            added += [f"stage {stage} {bucket}", 1]
            added += [f"stage {stage} {TOTAL}", round(1000 * milliseconds)]
    return added


def parse(fields: Mapping[str, str], events_waiting: int) -> Tallies:
    """Read the hash."""
    accepted, requeued, sends = dict[str, int](), dict[str, int](), dict[str, int]()
    ended = dict[tuple[str, ...], int]()
    stages: defaultdict[tuple[str, str], Durations] = defaultdict(Durations)
    for name, text in fields.items():
        kind, _, labels = name.partition(" ")
        number = int(text)
        match kind:
            case "accepted":
                accepted[labels] = number
            case "requeued":
                requeued[labels] = number
            case "sent":
                sends[labels] = number
            case "ended":
                status, vae = labels.split(" ", 1)
                ended[status, vae] = number
            case "stage":
                stage, bucket, vae = labels.split(" ", 2)
                durations = stages[stage, vae]
                if bucket == TOTAL:
                    durations.seconds = number / 1e6
                else:
                    durations.buckets[int(bucket)] = number
            case _:
                continue  # counted by a newer version that shares this Redis
    return Tallies(accepted, ended, requeued, stages, sends, events_waiting)
