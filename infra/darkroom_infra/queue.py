"""The queue: Celery on Redis, used as a doorbell. A message says "look at this job", no more."""

from __future__ import annotations

import base64
import json
import uuid
from dataclasses import dataclass
from typing import Any, Final

from celery import Celery
from kombu.transport import redis as kombu_redis
from redis.exceptions import ConnectionError as RedisConnectionError

DECODE_QUEUE: Final = "darkroom.decode"
DEVELOP_TASK: Final = "darkroom.develop"
WEBHOOKS_QUEUE: Final = "darkroom.webhooks"
DELIVER_TASK: Final = "darkroom.deliver"

# The Celery priority of each rank, 0 first: kombu keeps one list for each.
PRIORITIES: Final = [0, 3, 6]


@dataclass(frozen=True)
class Doorbell:
    """A ready-made Celery message and the Redis list it belongs in.

    Written by hand so that a script can put a job on record and ring for it in one step. Format:
    https://docs.celeryq.dev/en/stable/internals/protocol.html (version 2) in kombu's envelope for
    Redis.
    """

    queue_key: str
    message: str

    @classmethod
    def for_job(cls, job_id: str, rank: int) -> Doorbell:
        """Make the message that has a worker look at a job."""
        return cls._make(DECODE_QUEUE, DEVELOP_TASK, [job_id], job_id, PRIORITIES[rank])

    @classmethod
    def for_courier(cls) -> Doorbell:
        """Make the message that has the courier look into the outbox."""
        return cls._make(WEBHOOKS_QUEUE, DELIVER_TASK, [], "outbox", 0)

    @classmethod
    def _make(
        cls, queue: str, task: str, arguments: list[str], message_id: str, priority: int
    ) -> Doorbell:
        body = json.dumps([arguments, {}, {}])
        message = {
            "body": base64.b64encode(body.encode()).decode(),
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": {"lang": "py", "task": task, "id": message_id, "ignore_result": True},
            "properties": {
                "delivery_info": {"exchange": "", "routing_key": queue},
                "priority": priority,
                "body_encoding": "base64",
                # Unique among the messages that one worker has at a time.
                "delivery_tag": uuid.uuid4().hex[:12],
            },
        }
        suffix = f"{kombu_redis.Channel.sep}{priority}" if priority else ""
        return cls(queue + suffix, json.dumps(message, separators=(",", ":")))


class Channel(kombu_redis.Channel):  # type: ignore[misc]
    """kombu's channel, which survives a restart of Redis.

    When Redis goes away, a consumer with several slots may ask for a connection of a transport
    that was closed meanwhile. kombu then fails with AttributeError, and Celery exits. A connection
    error is what happened, and Celery reconnects on it.
    """

    def _connparams(self, asynchronous: bool = False) -> Any:
        if self.connection is None or self.connection.client is None:
            raise RedisConnectionError("the connection to Redis was closed")
        return super()._connparams(asynchronous)


class Transport(kombu_redis.Transport):  # type: ignore[misc]
    """kombu's Redis transport with the channel above."""

    Channel = Channel


def make_celery(redis_url: str, queue: str = DECODE_QUEUE) -> Celery:
    """Make the Celery application of this installation; it is nobody's current app."""
    app = Celery("darkroom", broker=redis_url, set_as_current=False)
    app.conf.update(
        broker_transport=f"{__name__}:{Transport.__name__}",
        broker_transport_options={
            # A message that is taken is gone: the record's lease and the keeper see to the job.
            # Acknowledgements would say nothing more, would cost each message four more writes, and
            # fail where Redis is away: a worker that waits for them does not notice that it is.
            "ack_emulation": False,
            "socket_timeout": 5,
            "socket_connect_timeout": 2,
            "socket_keepalive": True,
            "health_check_interval": 5,
            "priority_steps": PRIORITIES,
            "sep": kombu_redis.Channel.sep,
        },
        broker_connection_max_retries=None,
        broker_connection_retry_on_startup=True,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        accept_content=["json"],
        task_serializer="json",
        task_default_queue=queue,
        task_ignore_result=True,
        worker_enable_remote_control=False,
        worker_hijack_root_logger=False,
        worker_prefetch_multiplier=1,
        worker_send_task_events=False,
    )
    return app


def work(app: Celery, queue: str, threads: int) -> None:
    """Run a Celery worker with its threads pool until a signal comes."""
    worker = app.Worker(
        pool="threads",
        concurrency=threads,
        queues=[queue],
        hostname=f"darkroom-{uuid.uuid4().hex[:8]}@%h",
        loglevel="WARNING",
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
    )
    worker.start()
