"""Everything around `LatentDiffusion.generate`: load a model file, run a task, save images."""
