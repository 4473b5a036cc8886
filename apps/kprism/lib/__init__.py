# SPDX-License-Identifier: Apache-2.0
"""The app: rooms with one subject each. A room imports only those that its docstring names; see
tests/unit/test_import_directions.py and docs/architecture.md.

The modules beside the rooms serve several of them: `errors`, `options` and `files` (no imports to speak of),
`request_statistics`, `datastore` (folders of studies), `engine` (the one network, its lock and its cache) and
`learning_loop`, which joins `learning` and `trainers`.
"""
