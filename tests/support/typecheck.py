"""The type checker for annotations of `ldm` under pytest: beartype, with int accepted for float (PEP 484)."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
