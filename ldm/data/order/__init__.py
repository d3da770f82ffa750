"""The order of samples as a pure function of (seed, position): shuffling, mixing, filtering, buckets."""
