"""Samplers are generators: `sampler(denoise, z_T, times, schedule, noise)` yields z at times[1], ..., 0.

`times` falls and ends in 0; the step into 0 returns the predicted z_0 itself. What a sampler draws comes from
`noise(i)`, called with the number of the step, so that the caller decides how a picture's noise is keyed.
One file each: `from ldm.diffusion.samplers.ddim import ddim`.
"""
