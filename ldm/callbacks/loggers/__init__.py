"""Lightning loggers, with one run per folder: CSV, TensorBoard and W&B."""
