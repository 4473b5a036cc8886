# SPDX-License-Identifier: Apache-2.0
"""The models of the app: one request to one answer. Imports `learning`, `imaging` and the modules beside the rooms."""
