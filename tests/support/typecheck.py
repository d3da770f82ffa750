"""Checks the annotations of `ldm` under pytest: beartype, with an int where a float is asked (PEP 484)."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
