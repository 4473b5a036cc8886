# SPDX-License-Identifier: Apache-2.0
"""DICOM at the app's edge: series to volumes, images to series, masks to segmentations (SEG) and back."""
