"""The architectures: U-Net, autoencoders, bottlenecks, discriminators.

Plain modules of torch and einops. They take tensors and `Conditioning`, never batches,
losses, schedules or training state.
"""
