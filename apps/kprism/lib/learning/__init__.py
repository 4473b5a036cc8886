# SPDX-License-Identifier: Apache-2.0
"""What the app learns from: submissions, versions of the weights, references, scores, strategies, and reloading.

Imports the modules beside the rooms and `imaging`; the trainings themselves are `trainers`.
"""
