# SPDX-License-Identifier: Apache-2.0
"""Commands behind `./kprism` that need Python; none of them is part of the server."""
