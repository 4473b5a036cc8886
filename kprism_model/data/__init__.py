# SPDX-License-Identifier: Apache-2.0
"""From labelled images on disk to training batches."""
