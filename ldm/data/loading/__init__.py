"""From an order of samples to batches: reading, collating, worker processes."""
