# SPDX-License-Identifier: Apache-2.0
"""The command `kprism`: one module for each way of running a command.

It may import everything, but does so late: a command imports its own needs alone, and `serve` starts after a few
milliseconds. What makes the environment is in the shell script `kprism`, which calls this.
"""
