"""Commands, one file each (`python -m ldm.cli.NAME`), and the only place that knows Hydra and OmegaConf."""
