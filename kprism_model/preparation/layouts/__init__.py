# SPDX-License-Identifier: Apache-2.0
"""How downloads are laid out: one module for each way, which finds images, labels, patients and official lists."""
