"""Sending webhooks: one signed request to a receiver that may be hostile, and when to try again.

`Sender` makes one attempt and says in an `Outcome` what came of it; `Schedule` says when the next
is due. Nothing here needs torch, Redis or S3.
"""

from .outcomes import Outcome
from .resolving import ResolveError, Resolver, SystemResolver
from .schedule import Schedule
from .sending import Sender

__all__ = ["Outcome", "ResolveError", "Resolver", "Schedule", "Sender", "SystemResolver"]
