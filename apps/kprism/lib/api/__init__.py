# SPDX-License-Identifier: Apache-2.0
"""HTTP: routes, uploads, and error messages. May import every other package of `lib`; only `main` imports it."""
