# SPDX-License-Identifier: Apache-2.0
"""The app's models: four ways to ask one network."""
