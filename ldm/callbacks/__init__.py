"""Lightning callbacks of a training run: weight averages, checkpoints, model files, preview images, speed."""
