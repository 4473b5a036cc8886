# SPDX-License-Identifier: Apache-2.0
"""Sites that share no images train one network together: NVIDIA FLARE moves and averages the weights.

`plan` is what the sites agree on, `exchange` the tensors that travel, `site` a site's folder, `site_training` its part
of the work, `client` and `persistor` what FLARE runs, `job` FLARE's recipe, `simulation` all sites on one machine, and
`adoption` the gate at a site. docs/federation.md describes it for users.
"""
