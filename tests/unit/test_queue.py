"""The doorbell and the transport."""

from __future__ import annotations

import pytest
from kombu import Connection
from redis.exceptions import ConnectionError as RedisConnectionError

from darkroom_infra.queue import Channel, Transport, make_celery
from tests.conftest import Servers


def test_a_closed_transport_is_a_connection_error(servers: Servers) -> None:
    """A channel whose transport was closed says so by an error on which Celery reconnects.

    kombu's own channel raises AttributeError here, on which Celery exits.
    """
    connection = Connection(servers.stack.redis_url, transport=Transport)
    channel = connection.channel()
    assert isinstance(channel, Channel)
    channel.connection.client = None
    with pytest.raises(RedisConnectionError):
        channel._connparams()


def test_celery_uses_the_transport(servers: Servers) -> None:
    """Workers run on the transport above, whatever the scheme of the address."""
    app = make_celery(servers.stack.redis_url)
    with app.connection() as connection:
        assert type(connection.transport) is Transport
        assert not connection.default_channel.ack_emulation
