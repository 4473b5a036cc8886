# SPDX-License-Identifier: Apache-2.0
"""What the app is set up with."""
