# SPDX-License-Identifier: Apache-2.0
"""What the server adds for browsers: OHIF with the K-Prism mode, its interface, the status page, repairs of OHIF."""
