# SPDX-License-Identifier: Apache-2.0
"""Routes for browsers: OHIF with the K-Prism mode, its proxy to the DICOMweb store, and the status page."""
