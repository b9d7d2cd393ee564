"""Compare a collection's index with what the adapter created, to find changes by templates and operators.

Elasticsearch merges every matching index template into a new index, and operators can change mappings,
settings and aliases later. ``faults`` finds changes that would give wrong results or lose data without an
error; the collection is then not used. ``notes`` finds changes that are handled, or that fail with an error,
and are worth knowing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from m3_connectors.backends.capabilities import Remark
from m3_connectors.backends.elasticsearch.filters import DATES, LONGEST_TERM, NUMBERS, TERMS
from m3_connectors.backends.elasticsearch.layout import (
    DENSE,
    DYNAMIC_TEMPLATES,
    OUTSIDE_SOURCE,
    PART_OF,
    PARTS,
)
from m3_connectors.backends.elasticsearch.rows import MOST_HITS

_AGAIN = "Index the documents again into another collection."
_IGNORE_ABOVE = "index.mapping.ignore_above"
_IGNORE_FIELDS = "index.mapping.total_fields.ignore_dynamic_beyond_limit"

_DEFAULTS: Mapping[str, Any] = {
    "dims": None,
    "similarity": None,
    "element_type": "float",
    "normalizer": None,
    "null_value": None,
    "enabled": True,
    "dynamic": None,
}
"""Parameters of a field that change what is stored or found, with the default that a response leaves out."""


def faults(index: Mapping[str, Any], properties: Mapping[str, Any], alias: str) -> Iterator[Remark]:
    """Yield what makes results wrong, or loses written data, without an error from the server.

    Args:
        index: The index in the response to ``GET /ALIAS`` with flat settings.
        properties: The fields as the adapter creates them.
        alias: The collection's alias.
    """
    mappings, settings = index["mappings"], index.get("settings", {})
    yield from _of_fields(mappings.get("properties", {}), properties)
    yield from _of_dynamic_templates(mappings)
    yield from _of_source(mappings.get("_source", {}))
    for name in mappings.get("runtime", {}):
        if name.split(".")[0] in properties:
            yield Remark(
                f'the runtime field "{name}" hides a field of the collection',
                f'PUT /{alias}/_mapping {{"runtime": {{"{name}": null}}}}',
            )
    if mappings.get("_routing", {}).get("required"):
        yield Remark("the mapping requires a routing value (_routing.required)", _AGAIN)
    longest = settings.get(_IGNORE_ABOVE)
    if longest is not None and int(longest) < LONGEST_TERM:
        yield Remark(
            f"{_IGNORE_ABOVE} is {longest}, so filters do not find longer values; values have up to "
            f"{LONGEST_TERM} characters",
            f"Remove the setting from the index template. {_AGAIN}",
        )
    if settings.get(_IGNORE_FIELDS) == "true":
        yield Remark(
            f"{_IGNORE_FIELDS} is true, so filters by number or date do not find fields beyond the limit",
            f'PUT /{alias}/_settings {{"{_IGNORE_FIELDS}": false}}, and index the documents again.',
        )
    pipeline = settings.get("index.final_pipeline", "_none")
    if pipeline != "_none":
        yield Remark(
            f'the ingest pipeline "{pipeline}" (index.final_pipeline) may change or drop what is written',
            f'PUT /{alias}/_settings {{"index.final_pipeline": "_none"}}, and remove it from the index '
            "template.",
        )
    for what in ("filter", "index_routing", "search_routing"):
        if what in index.get("aliases", {}).get(alias, {}):
            yield Remark(
                f'the alias "{alias}" has a {what}, so searches see only some documents while reads by id '
                "see all",
                "Use an alias without it.",
            )


def notes(index: Mapping[str, Any], alias: str) -> Iterator[Remark]:
    """Yield what the adapter compensates for, what fails with a server error, and what may be surprising.

    Args:
        index: The index in the response to ``GET /ALIAS`` with flat settings.
        alias: The collection's alias.
    """
    settings = index.get("settings", {})
    kind = dense_index(index)
    if kind not in ("hnsw", "flat"):
        yield Remark(
            f"the dense index is quantised ({kind}), which affects which documents are candidates; scores "
            "are computed from the float32 vectors and remain exact",
            "Search with exact=True if the candidates must be exact, too.",
            is_problem=False,
        )
    window = int(settings.get("index.max_result_window", MOST_HITS))
    if window < MOST_HITS:
        yield Remark(
            f"index.max_result_window is {window}, so searches for more hits fail",
            f'PUT /{alias}/_settings {{"index.max_result_window": {MOST_HITS}}}',
        )
    if settings.get("index.refresh_interval", "").startswith("-"):
        yield Remark(
            "index.refresh_interval is -1, so searches see only writes with refresh=True",
            f'PUT /{alias}/_settings {{"index.refresh_interval": null}}',
            is_problem=False,
        )
    pipeline = settings.get("index.default_pipeline", "_none")
    if pipeline != "_none":
        yield Remark(
            f'the ingest pipeline "{pipeline}" (index.default_pipeline) is not applied to this collection',
            "Nothing needs to be done: documents are stored unchanged.",
            is_problem=False,
        )
    if settings.get("index.translog.durability") == "async":
        yield Remark(
            "index.translog.durability is async, so a crash of the server loses the writes of the last "
            "seconds, although they were acknowledged",
            f'PUT /{alias}/_settings {{"index.translog.durability": "request"}}',
        )
    if policy := settings.get("index.lifecycle.name"):
        yield Remark(
            f'the lifecycle policy "{policy}" manages the index and may delete it',
            f"See GET /_ilm/policy/{policy}.",
            is_problem=False,
        )


def dense_index(index: Mapping[str, Any]) -> str:
    """Return the type of the dense index, such as ``hnsw`` or ``int8_hnsw``."""
    found = index["mappings"].get("properties", {}).get(DENSE, {})
    return str(found.get("index_options", {}).get("type", "flat"))


def has_own_dynamic_templates(mappings: Mapping[str, Any]) -> bool:
    """Whether the templates for the types of numbers and dates come first."""
    first = mappings.get("dynamic_templates", [])[: len(DYNAMIC_TEMPLATES)]
    return sorted(name for template in first for name in template) == sorted((NUMBERS, DATES))


def _of_fields(found: Mapping[str, Any], expected: Mapping[str, Any]) -> Iterator[Remark]:
    for name, wanted in expected.items():
        # The response leaves out the type of an object.
        field = found.get(name, {})
        kind = field.get("type", "object" if name in found else "missing")
        if kind != wanted["type"]:
            yield Remark(f'the field "{name}" has the type {kind}; it must be {wanted["type"]}', _AGAIN)
            continue
        yield from _of_field(name, field, wanted)
    for parent, kind in ((NUMBERS, "double"), (DATES, "long")):
        for name, field in found.get(parent, {}).get("properties", {}).items():
            if field.get("type") != kind or field.get("index") is False:
                yield Remark(
                    f'the field "{parent}.{name}" has the type {field.get("type", "object")}; it must be an '
                    f"indexed {kind}",
                    _AGAIN,
                )


def _of_field(name: str, field: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[Remark]:
    for parameter, default in _DEFAULTS.items():
        is_, must_be = (str(of.get(parameter, default)).lower() for of in (field, wanted))
        if is_ != must_be:
            yield Remark(f'"{parameter}" of the field "{name}" is {is_}; it must be {must_be}', _AGAIN)
    for parameter in ("index", "doc_values"):
        if field.get(parameter) is False and wanted.get(parameter) is not False:
            yield Remark(f'"{parameter}" of the field "{name}" is false; it must be true', _AGAIN)
    if wanted.get("store") and not field.get("store"):
        yield Remark(f'"store" of the field "{name}" is false; it must be true', _AGAIN)
    longest = field.get("ignore_above")
    if name in (TERMS, PARTS, PART_OF) and longest is not None and int(longest) < LONGEST_TERM:
        yield Remark(
            f'"ignore_above" of the field "{name}" is {longest}; it must be at least {LONGEST_TERM}', _AGAIN
        )


def _of_dynamic_templates(mappings: Mapping[str, Any]) -> Iterator[Remark]:
    if not has_own_dynamic_templates(mappings):
        names = ", ".join(name for template in mappings.get("dynamic_templates", []) for name in template)
        yield Remark(
            f'the dynamic templates are {names or "missing"}; those of the collection ("{NUMBERS}", '
            f'"{DATES}") must '
            "come first, or numbers and dates get another type",
            _AGAIN,
        )


def _of_source(source: Mapping[str, Any]) -> Iterator[Remark]:
    if source.get("enabled") is False or source.get("mode", "stored") != "stored":
        yield Remark("texts are not stored unchanged (_source is disabled or synthetic)", _AGAIN)
    lost = [*source.get("includes", ()), *sorted(set(source.get("excludes", ())) - set(OUTSIDE_SOURCE))]
    if lost:
        yield Remark(
            f"_source includes or excludes {', '.join(lost)}, so texts or metadata may not be stored", _AGAIN
        )
