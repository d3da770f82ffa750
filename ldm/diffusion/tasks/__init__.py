"""Uses of a sampler other than sampling from noise.

`img2img`, `inpaint`, `resample` and `slerp_noise` wrap a sampler: with their own arguments bound, as in
`partial(img2img, sampler=ddim, z_0=z_0, strength=0.6)`, they are samplers. `invert` goes the other way,
from a latent to its noise.
"""
