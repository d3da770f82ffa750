"""The mathematics of diffusion, in torch only; independent of networks, data and training.

Everywhere `z_t = alpha_t * z_0 + sigma_t * eps`:

| ours        | meaning             | DDPM       | DDIM       | DPM-Solver| EDM     | diffusers              |
|-------------|---------------------|------------|------------|-----------|---------|------------------------|
| `alpha_t`   | signal coefficient  | sqrt(ᾱ_t)  | sqrt(α_t)  | α_t       | s(t)    | `alphas_cumprod**0.5`  |
| `sigma_t`   | noise coefficient   | sqrt(1−ᾱ_t)| sqrt(1−α_t)| σ_t       | s(t)σ(t)|`(1-alphas_cumprod)**.5`|
| `lam_t`     | log(alpha_t/sigma_t)| –          | –          | λ_t       | −log σ  | `lambda_t`             |
| `tau`       | injected noise      | σ_t        | σ_t(η)     | –         | –       | `std_dev_t`            |
| `x`         | pixels              | x_0        | x_0        |           | y       | `sample`               |
| `z_0`, `z_t`| clean, noisy latent | x_0, x_t   | x_0, x_t   | x_0, x_t  | y, x    | `sample`               |
| `eps`, `v`  | noise, velocity     | ε          | ε          | ε         | n       | `noise`                |
| `cond`      | conditioning        | –          | –          | c         | –       | `encoder_hidden…`      |

Time follows the papers, t = 1..T with 0 clean: a schedule has T + 1 entries and t = 0 is exactly
alpha = 1, sigma = 0. t = 0 is only ever a target, never a point of evaluation (lam is infinite there).
Schedules are also defined between whole t; continuous ones (flow, Karras) use the same axis.

A network receives `parameterization.input_scale * z_t` and `schedule.network_time(t)`. Both are computed in
two places only: `objective.diffusion_loss` and `guidance`.
"""
