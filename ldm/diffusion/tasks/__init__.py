"""What is done with a sampler beside drawing from noise: functions over the same generators.

`img2img`, `inpaint`, `resample` and `blend` are samplers made from a sampler: with their own arguments bound
(`partial(img2img, sampler=ddim, z_0=z_0, strength=0.6)`) they go wherever a sampler goes. `invert` leads the
other way, from a latent to its noise.
"""
