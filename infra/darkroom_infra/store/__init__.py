"""The object store: any S3-compatible service, behind a few verbs."""

from .config import StoreConfig
from .errors import StoreError, StoreRefusedError, StoreUnavailableError
from .objects import ObjectStore, StoredObject

__all__ = [
    "ObjectStore",
    "StoreConfig",
    "StoreError",
    "StoreRefusedError",
    "StoreUnavailableError",
    "StoredObject",
]
