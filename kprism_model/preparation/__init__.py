# SPDX-License-Identifier: Apache-2.0
"""From a download to a data set: the command `prepare`.

`catalogue.toml` says what each download is, and which value is which class. A module of `layouts` finds the cases of a
download; `writing` writes them as a folder with a dataset.json, one case after the other.
Downloads of general formats describe themselves: `own_description` reads that, `own_exports` what this project exports.
"""
