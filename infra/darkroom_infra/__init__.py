"""What the API and the workers stand on: settings, catalogue, records, store, queue, stack."""
