"""Everything around `trainer.fit`: checks before the run, launchers, the run's lock, config and log."""
