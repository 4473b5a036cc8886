# SPDX-License-Identifier: Apache-2.0
"""Learning: submissions, versions of the weights, the reference cache, strategies, and reloading of weights.

Imports the modules beside the rooms and `imaging`. The training itself is in `trainers`.
"""
