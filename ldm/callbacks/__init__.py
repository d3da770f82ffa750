"""What watches and keeps a training run: averages, checkpoints, sampling files, pictures, speed."""
