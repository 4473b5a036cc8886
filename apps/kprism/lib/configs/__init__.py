# SPDX-License-Identifier: Apache-2.0
"""The app's settings (`--conf`), checked at the start. Imports `trainers` and `learning` for their defaults."""
