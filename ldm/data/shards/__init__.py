"""Read shards: tar files, their indexes and manifest, local or remote."""
