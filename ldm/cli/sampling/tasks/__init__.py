"""The tasks of `sample.py`, chosen by `task=NAME`: one class each, one file per kind."""
