# SPDX-License-Identifier: Apache-2.0
"""DICOM: series, SEG objects and the DICOMweb datastore. Imports `imaging`, `datastore`, `errors` and `files`."""
