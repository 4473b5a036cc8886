# SPDX-License-Identifier: Apache-2.0
"""HTTP: routes, uploads, and errors as sentences. May import every other room; nothing imports it but `main`."""
