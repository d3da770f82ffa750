"""What watches and keeps a training run: averages, checkpoints, model files, images, speed."""
