"""``m3 search``: search a collection."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from m3_connectors.backends.registry import DEFAULT_COLLECTION
from m3_connectors.cli.console import err, one_line, out, print_json, print_table
from m3_connectors.cli.opening import open_index
from m3_connectors.cli.options import (
    Collection,
    Debug,
    Json,
    MethodName,
    Model,
    Url,
    WeightsText,
    at_least,
    choose_method,
    read_filter,
)
from m3_connectors.cli.passages import best_lines, place_of
from m3_connectors.cross_encoder import CrossEncoder
from m3_connectors.documents import Document, Hit
from m3_connectors.embeddings import COMPONENTS


class _GroupBy(StrEnum):
    PARENT = "parent"


def search(
    url: Url,
    query: Annotated[str, typer.Argument(metavar="QUESTION", help="The query.")],
    collection: Collection = DEFAULT_COLLECTION,
    model: Model = None,
    method: MethodName = "all",
    k: Annotated[
        int, typer.Option("-k", metavar="K", help="Maximum number of hits.", parser=at_least(1))
    ] = 10,
    filter: Annotated[
        str | None,
        typer.Option(
            "--filter",
            metavar="JSON",
            help="""Search only documents that match, such as '{"year": {"$gte": 2020}}'.""",
        ),
    ] = None,
    weights: WeightsText = None,
    group_by: Annotated[
        _GroupBy | None,
        typer.Option("--group-by", help="Show only the best chunk of each document that was cut."),
    ] = None,
    offset: Annotated[
        int, typer.Option("--offset", metavar="N", help="Skip the first N hits.", parser=at_least(0))
    ] = 0,
    min_score: Annotated[
        float | None, typer.Option("--min-score", metavar="SCORE", help="Omit hits with a lower score.")
    ] = None,
    rerank: Annotated[
        str | None,
        typer.Option(
            "--rerank",
            metavar="MODEL",
            help="Re-rank the best hits with a cross-encoder: a name on the hub or a directory.",
        ),
    ] = None,
    rerank_depth: Annotated[
        int,
        typer.Option("--rerank-depth", metavar="N", help="Number of hits to re-rank.", parser=at_least(1)),
    ] = 50,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show the best documents for a query, with the scores that determine their rank."""
    wanted = read_filter(filter)
    asked = choose_method(method, weights)
    with open_index(url, collection, model) as index:
        chosen = asked or index.methods[method]
        hits = index.search(
            query,
            method=chosen,
            k=k,
            filter=wanted,
            group_by="parent" if group_by else None,
            offset=offset,
            min_score=min_score,
            rerank=CrossEncoder(rerank) if rerank else None,
            rerank_depth=rerank_depth,
        )
        # A sparse list contains only documents that share a token with the query.
        is_whole = method == "sparse" and len(hits) < k and not (offset or group_by) and min_score is None
        unmatched = index.count(wanted) - len(hits) if is_whole else 0
    if json:
        print_json(
            {
                "query": query,
                "method": method,
                "weights": list(chosen.weights),
                "group_by": group_by,
                "hits": [hit.to_dict() for hit in hits],
            }
        )
        return
    if hits:
        print_table(hits_table(hits, query, offset))
        if unmatched:
            others = "other document shares" if unmatched == 1 else "other documents share"
            err.print(f"  {unmatched:,} {others} no token with the query", style="dim")
    elif unmatched:
        out.print("  no document shares a token with the query")
    else:
        out.print(f"  {_why_nothing(filtered=bool(wanted), page=offset > 0 or min_score is not None)}")


def _why_nothing(*, filtered: bool, page: bool) -> str:
    if page:
        return "no hit is left after --offset and --min-score"
    return "no document " + ("matches the filter" if filtered else "is in the collection")


def hits_table(hits: list[Hit], query: str, offset: int = 0) -> Table:
    """Return a table of hits: rank, score, fused score if re-ranked, component scores, and what was found.

    This is the id and the start of the text; of a chunk, its place in the document and its best lines.
    """
    table = Table(box=None, pad_edge=True, padding=(0, 1), header_style="dim")
    reranked = any(hit.fused_score is not None for hit in hits)
    for name in ("#", "score", *(["fused"] if reranked else []), "dense", "sparse", "multi"):
        table.add_column(name, justify="right", style="bold" if name == "score" else None)
    table.add_column("document")
    for rank, hit in enumerate(hits, offset + 1):
        scores = [getattr(hit.scores, name) for name in COMPONENTS]
        if reranked:
            scores = [hit.fused_score, *scores]
        # The width that the numbers leave: in a table that is too wide, rich would shrink the numbers.
        document = _shown(hit.document, query, max(20, out.width - 42 - 8 * reranked))
        table.add_row(
            str(rank),
            f"{hit.score:.3f}",
            *("–" if score is None else f"{score:.3f}" for score in scores),
            document,
        )
    return table


def _shown(document: Document, query: str, width: int) -> Text:
    passage = document.passage
    if passage is None:
        line = Text.assemble((one_line(document.id), "bold"), (" · ", "dim"), one_line(document.text))
        line.truncate(width, overflow="ellipsis")
        return line
    place = Text(one_line(place_of(passage)), "bold")
    place.truncate(width, overflow="ellipsis")
    return Text("\n").join([place, best_lines(document.text, query, width)])
