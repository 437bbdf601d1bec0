"""The embedded stack of `darkroom up`: Valkey, SeaweedFS, the API and workers, supervised."""
