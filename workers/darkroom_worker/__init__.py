"""The worker: takes jobs from the queue, decodes them on one device, stores the results."""
