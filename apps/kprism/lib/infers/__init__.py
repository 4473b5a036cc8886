# SPDX-License-Identifier: Apache-2.0
"""The models of the app: a request is resolved, answered and written. Imports `learning` and what `learning` imports.

`task` holds the steps of every request; `resolve` makes an `InferRequest` (`request`) of what a client sends; the models are
`semantic`, `in_context`, `interactive` and `scribbles`; `result` writes their answer.
"""
