# SPDX-License-Identifier: Apache-2.0
"""The models of the app: a request is resolved, answered and written. Imports `learning` and what `learning` imports.

`task` holds the steps of every request: `resolve` turns what a client sends into an `InferRequest` (`request`); a model
(`semantic`, `in_context`, `interactive`, `scribbles`) answers it; `result` writes the answer.
"""
