"""Configs on the command line: compose them, check the values, build objects from them."""
