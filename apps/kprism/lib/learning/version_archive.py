# SPDX-License-Identifier: Apache-2.0
"""A version of the weights as one file, for another server: `export_version` writes it, `import_version` reads it.

The file is a ZIP archive without compression. It holds the pair of files of the version, those of the versions that its
routes name, and `manifest.json`, which lists them with their hashes. Image ids stay at the site: of what the trainer
recorded, only `EXPORTED` leaves it. An imported version does not serve until somebody chooses it by a rollback.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kprism_model.files import write_bytes
from lib.files import locked, write_json
from lib.learning.architecture import is_of_earlier_network
from lib.learning.version_files import SHIPPED, Version, VersionError, VersionFiles
from lib.learning.version_pointer import PointerFile
from lib.learning.versions import Versions
from lib.routes import Routes

EXPORTED = (
    *("base", "routes", "provisional", "kinds", "dice", "metrics", "gate", "minutes", "steps", "tuned_share"),
    "federated",
)
"""Keys of a version's note that are exported; others may name cases."""

MANIFEST = "manifest.json"
FORMAT, FORMAT_VERSION = "kprism-version", 1
MAX_BYTES = 4 << 30
"""The most bytes that the files of an archive may have together."""

_NAME = re.compile(r"(\d{4,9})\.(safetensors|json)")
_DAMAGE = (zipfile.BadZipFile, EOFError, zlib.error, RuntimeError, NotImplementedError, OSError)


@dataclass(frozen=True)
class _Pair:
    """The two files of a version in an archive: the weights and the parsed JSON."""

    weights: bytes
    description: dict[str, Any]

    @property
    def note(self) -> dict[str, Any]:
        """What the trainer recorded."""
        return dict(self.description["metadata"]["note"])


def export_version(versions: Versions, number: int, archive: Path) -> list[int]:
    """Write a version to the new file `archive`; returns the numbers of all versions in it.

    VersionError if the version is the shipped one, does not exist, is damaged or of an earlier network, or if the file
    exists. OSError if it cannot be written; then there is no file.
    """
    if number == SHIPPED:
        raise VersionError("version 0 of the weights is the shipped one, which every server has; expected another one")
    if archive.exists():
        raise VersionError(f"{archive} exists already; expected the name of a new file")
    with locked(versions.folder):  # no version is deleted meanwhile
        main = versions.version(number)
        numbers = sorted({number, *_routes(main.metadata, number, f"version {number}").numbers()})
        pairs = {each: _read_pair(versions, versions.version(each)) for each in numbers}
    write_bytes(archive, _zipped(number, pairs))
    return numbers


def import_version(versions: Versions, archive: Path) -> Version:
    """Add the version in `archive`, and those that its routes name, under new numbers; the serving version stays.

    A routed version that is here already is not added again. VersionError, and nothing is added, if the file is not
    such an archive, is damaged, fits another network than the shipped one, or holds a version that is here already.
    """
    number, pairs = _read_archive(archive)
    for each, pair in pairs.items():
        _check_weights(f"{archive}: version {each}", pair, versions.shipped)
    files = VersionFiles(versions.folder, versions.shipped)
    with locked(versions.folder):
        numbers, added = _new_numbers(versions, files, archive, number, pairs)
        try:
            for old in added:
                write_bytes(files.path(numbers[old]), pairs[old].weights)
            for old in added:  # weights without a description are not a version
                content = _description_here(pairs[old], archive, old, numbers)
                write_json(files.path(numbers[old]).with_suffix(".json"), content)
        except BaseException:
            for old in added:
                files.remove(numbers[old])
            raise
    return versions.version(numbers[number])


def _routes(note: Mapping[str, Any], number: int, what: str) -> Routes:
    """The routes of the version with this number; none for a version without routes."""
    try:
        return Routes.parse(note.get("routes") or {}, number)
    except ValueError as error:
        raise VersionError(f"{what}: {error}") from error


def _read_pair(versions: Versions, version: Version) -> _Pair:
    """The files of a version as they are exported."""
    if version.earlier:
        raise VersionError(f"version {version.number} of the weights is of an earlier network; no server can use it")
    if (fault := versions.fault(version)) is not None:
        raise VersionError(fault)
    description = json.loads(version.path.with_suffix(".json").read_bytes())
    note = {key: version.metadata[key] for key in EXPORTED if key in version.metadata}
    cases = version.metadata.get("trained_on")
    if isinstance(cases, list):
        note["cases"] = len(cases)
    description["metadata"] = {**description["metadata"], "note": note}
    return _Pair(version.path.read_bytes(), description)


def _zipped(number: int, pairs: Mapping[int, _Pair]) -> bytes:
    """The content of the archive; the same for the same version."""
    files: dict[str, bytes] = {}
    for each, pair in pairs.items():
        files[f"{each:04d}.safetensors"] = pair.weights
        files[f"{each:04d}.json"] = _json(pair.description)
    note = pairs[number].note
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "version": number,
        "base": note.get("base"),
        "structures": pairs[number].description["classes"],
        "routes": note.get("routes", {}),
        "kinds": note.get("kinds"),
        "files": {
            name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
            for name, content in files.items()
        },
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in {MANIFEST: _json(manifest), **files}.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _read_archive(archive: Path) -> tuple[int, dict[int, _Pair]]:
    """The number of the version in the archive, and all pairs by their number there, every hash checked."""
    try:
        with zipfile.ZipFile(archive) as opened:
            contents = _contents(archive, opened)
    except FileNotFoundError as error:
        raise VersionError(f"there is no file {archive}") from error
    except _DAMAGE as error:
        raise VersionError(f"{archive} is no ZIP archive or is damaged: {error}") from error
    manifest = _object(f"{archive}: {MANIFEST}", contents.pop(MANIFEST))
    if (manifest.get("format"), manifest.get("format_version")) != (FORMAT, FORMAT_VERSION):
        found = f"{manifest.get('format')!r} {manifest.get('format_version')!r}"
        raise VersionError(f"{archive}: the format is {found}; expected {FORMAT!r} {FORMAT_VERSION}")
    _check_hashes(archive, manifest.get("files"), contents)
    pairs = _pairs(archive, contents)
    number = manifest.get("version")
    if type(number) is not int or number not in pairs:
        raise VersionError(f"{archive}: the version is {number!r}; expected one of {', '.join(map(str, pairs))}")
    routes = {each: _routes(pair.note, each, f"{archive}: version {each}") for each, pair in pairs.items()}
    lacking = set(routes[number].numbers()) - set(pairs)
    if lacking:
        names = ", ".join(map(str, sorted(lacking)))
        raise VersionError(f"{archive}: version {number} routes structures to version {names}, which is not in it")
    return number, pairs


def _contents(archive: Path, opened: zipfile.ZipFile) -> dict[str, bytes]:
    """Name -> content of each entry, read into memory; nothing is unpacked to a path that an entry names."""
    entries = opened.infolist()
    for entry in entries:
        if entry.filename != MANIFEST and not _NAME.fullmatch(entry.filename):
            raise VersionError(
                f"{archive} holds {entry.filename!r}; expected {MANIFEST} and names like 0001.safetensors and 0001.json"
            )
    names = [entry.filename for entry in entries]
    if len(set(names)) < len(names) or MANIFEST not in names:
        raise VersionError(f"{archive} holds {', '.join(names) or 'nothing'}; expected {MANIFEST} and each name once")
    size = sum(entry.file_size for entry in entries)
    if size > MAX_BYTES:
        raise VersionError(f"{archive}: its files have {size} bytes; expected at most {MAX_BYTES}")
    return {name: opened.read(name) for name in names}


def _check_hashes(archive: Path, listed: Any, contents: Mapping[str, bytes]) -> None:
    if not isinstance(listed, dict) or set(listed) != set(contents):
        names = ", ".join(listed) if isinstance(listed, dict) else repr(listed)
        raise VersionError(f"{archive}: the manifest lists the files {names}; it holds {', '.join(contents)}")
    for name, content in contents.items():
        expected = listed[name].get("sha256") if isinstance(listed[name], dict) else listed[name]
        actual = hashlib.sha256(content).hexdigest()
        if actual != expected:
            raise VersionError(f"{archive}: {name} has SHA-256 {actual}; the manifest says {expected}")


def _pairs(archive: Path, contents: Mapping[str, bytes]) -> dict[int, _Pair]:
    """The pairs by number; VersionError if a file has no other half or a description lacks an entry."""
    pairs = {}
    for name in contents:
        stem = name.partition(".")[0]
        if f"{stem}.json" not in contents or f"{stem}.safetensors" not in contents:
            raise VersionError(f"{archive} holds {name}; expected both {stem}.safetensors and {stem}.json")
        description = _object(f"{archive}: {stem}.json", contents[f"{stem}.json"])
        metadata = description.get("metadata")
        if not isinstance(metadata, dict) or not isinstance(metadata.get("note"), dict) or "made" not in metadata:
            raise VersionError(f"{archive}: {stem}.json is no description of a version: metadata is {metadata!r}")
        pairs[int(stem)] = _Pair(contents[f"{stem}.safetensors"], description)
    return pairs


def _object(what: str, content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except ValueError as error:
        raise VersionError(f"{what} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise VersionError(f"{what} holds {type(value).__name__}; expected a JSON object")
    return value


def _check_weights(what: str, pair: _Pair, shipped: Path) -> None:
    """VersionError unless the weights can be loaded and are of the same network as the shipped ones."""
    from kprism_model.checkpoint import CheckpointError, load_checkpoint

    with tempfile.TemporaryDirectory(prefix="kprism-import-") as folder:
        path = Path(folder) / "imported.safetensors"
        path.write_bytes(pair.weights)
        path.with_suffix(".json").write_bytes(_json(pair.description))
        try:
            load_checkpoint(path)
        except CheckpointError as error:
            raise VersionError(f"{what} cannot be used: {error}") from error
    try:
        config = json.loads(shipped.with_suffix(".json").read_bytes())["config"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise VersionError(f"{what} cannot be compared with the shipped weights, {shipped}: {error!r}") from error
    if is_of_earlier_network(pair.description["config"], config):
        raise VersionError(f"{what} is of another network than the shipped weights, {shipped}")


def _new_numbers(
    versions: Versions, files: VersionFiles, archive: Path, number: int, pairs: Mapping[int, _Pair]
) -> tuple[dict[int, int], list[int]]:
    """The number here of every version of the archive, and those that have to be added; the main one is the newest."""
    here = {version.weights_version: version for version in versions.known()}
    numbers = {SHIPPED: SHIPPED}
    added: list[int] = []
    pointer, _ = PointerFile(versions.folder / "current.json").read(lambda: (SHIPPED, *files.numbers()))
    following = max([pointer.highest, *files.numbers()]) + 1
    for old in sorted(pairs, key=lambda each: (each == number, each)):
        same = here.get(pairs[old].description["weights_version"])
        if same is not None and versions.fault(same) is None:
            if old == number:
                raise VersionError(f"{archive}: version {number} is here already, as version {same.number}")
            numbers[old] = same.number
            continue
        numbers[old] = following + len(added)
        added.append(old)
    return numbers, added


def _description_here(pair: _Pair, archive: Path, old: int, numbers: Mapping[int, int]) -> dict[str, Any]:
    """The description of an imported version. Routes of a routed version to others than those in the archive go."""
    routes = {
        mode: {name: numbers[number] for name, number in structures.items() if number in numbers}
        for mode, structures in _routes(pair.note, old, f"{archive}: version {old}").by_mode.items()
    }
    note = {**pair.note, **({"routes": routes} if routes else {})}
    note["origin"] = {"archive": archive.name, "version": old}
    made = pair.description["metadata"]["made"]
    return {
        **pair.description,
        "metadata": {"version": numbers[old], "parent": SHIPPED, "made": made, "note": note},
    }
