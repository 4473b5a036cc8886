# SPDX-License-Identifier: Apache-2.0
"""The trainer: fine-tunes the serving network on the submitted labels and publishes what passes the gate."""
