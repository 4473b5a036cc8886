# SPDX-License-Identifier: Apache-2.0
"""What the MONAI Label app adds around `kprism_model`: requests, images, datastore, HTTP."""
