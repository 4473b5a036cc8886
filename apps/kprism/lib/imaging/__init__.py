# SPDX-License-Identifier: Apache-2.0
"""Files to arrays and back: images, label maps, and the names of labels. Imports `errors`, `options`, `files`."""
