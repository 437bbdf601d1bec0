"""What may go wrong with the object store.

Foreign errors become built-in ones: `FileNotFoundError` for an object that is not there,
`FileExistsError` for one that is, and for everything that a later try may mend:

    StoreError
    ├── StoreUnavailableError   S3 is away, slow, or answers 5xx
    └── StoreRefusedError       S3 refuses: credentials, bucket, rights
"""

from __future__ import annotations


class StoreError(Exception):
    """The object store cannot do what was asked."""


class StoreUnavailableError(StoreError):
    """S3 is away, slow, or answers 5xx. Nothing is known of the call that failed."""


class StoreRefusedError(StoreError):
    """S3 refuses the call: credentials, bucket or rights are wrong."""
