"""A stand-in for a Qdrant server 1.18, for machines without one: both protocols on loopback, qdrant-client's local
mode behind them, and the behaviour measured on the real server where local mode differs.

Behaviour measured on 1.18.3 and imitated: multi-vectors in float16 are rounded, and so is the query; 2**20 floats in
one multi-vector are refused in writes and in queries; a REST body over 32 MiB is refused; creating an existing
collection gives 409, and using a missing one 404. Every request is kept, so that tests can check what was really sent.

Given an ``Operator``, searches are answered by Qdrant's own segments (``qdrant_twin``) under the settings that the
operator chose.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import numpy as np
from qdrant_client import QdrantClient, models
from qdrant_client import grpc as pb
from qdrant_client.conversions.conversion import GrpcToRest, RestToGrpc
from qdrant_twin import Operator, Twin, stages_of

MAX_FLOATS = 2**20
MAX_BODY_BYTES = 32 * 2**20


class Refusal(Exception):
    """A response with an error."""

    def __init__(
        self, status: int, code: grpc.StatusCode, message: str, headers: dict[str, str] | None = None
    ):
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, headers or {}


def invalid(message: str) -> Refusal:
    return Refusal(422, grpc.StatusCode.INVALID_ARGUMENT, message)


def strict(message: str) -> Refusal:
    return Refusal(400, grpc.StatusCode.INVALID_ARGUMENT, f"Bad request: {message}")


def sizes_of(asked: models.Filter | None) -> Iterator[int]:
    """Yield the number of values in each condition: ids, or the alternatives of a match."""
    if asked is None:
        return
    for group in (asked.must, asked.should, asked.must_not):
        for condition in group if isinstance(group, list) else [group] if group else []:
            if isinstance(condition, models.Filter):
                yield from sizes_of(condition)
            else:
                yield len(condition.has_id) if isinstance(condition, models.HasIdCondition) else 0


def spelled(path: str) -> str:
    """Return a payload path as the server reports it, with quotes only around keys that need them."""
    keys = (quoted or bare for quoted, bare in re.findall(r'"([^"]*)"|([^."]+)', path))
    return ".".join(key if re.fullmatch(r"[\w-]+", key) else f'"{key}"' for key in keys)


def needs_of(asked: models.Filter | None) -> Iterator[tuple[str, list[str]]]:
    """Yield the path of each condition on a field, and the index types that can answer it."""
    if asked is None:
        return
    for group in (asked.must, asked.should, asked.must_not):
        for condition in group if isinstance(group, list) else [group] if group else []:
            if isinstance(condition, models.Filter):
                yield from needs_of(condition)
            elif isinstance(condition, models.IsEmptyCondition):
                yield spelled(condition.is_empty.key), ["keyword", "integer", "float", "datetime", "bool"]
            elif isinstance(condition, models.FieldCondition):
                is_number = isinstance(condition.range, models.Range)
                kinds = (
                    ["keyword"] if condition.match else ["float", "integer"] if is_number else ["datetime"]
                )
                yield spelled(condition.key), kinds


@dataclasses.dataclass
class Request:
    """One request as it was received."""

    protocol: str
    name: str
    body: Any
    bytes: int


class FakeQdrant:
    """Start with ``start``, or as a context manager; ``stop`` and ``start`` again is a restart that keeps the data.

    Args:
        version: The version that the server reports.
        api_key: The key required in every request.
        grpc_open: Whether the second port accepts connections.
        certificate: Key and certificate chain in PEM, for TLS on both ports.
        operator: Settings of the operator for every collection; None for the results of local mode.
    """

    def __init__(
        self,
        *,
        version: str = "1.18.3",
        api_key: str | None = None,
        grpc_open: bool = True,
        certificate: tuple[bytes, bytes] | None = None,
        ssl_context: Any = None,
        operator: Operator | None = None,
    ) -> None:
        self.version, self.api_key, self.grpc_open = version, api_key, grpc_open
        self.certificate, self.ssl_context = certificate, ssl_context
        self.requests: list[Request] = []
        self.failures: list[tuple[str, Refusal]] = []
        """(name of a request, the error that it gets), each used once."""
        self.before: Callable[[str], None] = lambda name: None
        """Called with the name of each request before it is executed."""
        self.after: Callable[[str], None] = lambda name: None
        """Called after a request is executed, before the response is sent."""
        self.strict: dict[str, Any] = {}
        self.states: list[str] = []
        """Results of the next requests for a collection's state: a status, or the error message of its optimiser."""
        self.statuses: list[str] = []
        """Statuses that the next writes of the REST client get instead of "completed"."""
        self.indexes: dict[str, dict[str, str]] = {}
        self.port = self.grpc_port = 0
        self.engine = QdrantClient(":memory:")
        self.twin = Twin(operator) if operator is not None else None
        self._lock = threading.Lock()
        self._http: ThreadingHTTPServer | None = None
        self._rpc: grpc.Server | None = None

    @property
    def url(self) -> str:
        scheme = "https" if self.ssl_context else "http"
        return f"qdrant+{scheme}://localhost:{self.port}"

    def start(self) -> FakeQdrant:
        self._http = _Http(("127.0.0.1", self.port), _Handler)
        self._http.fake = self
        if self.ssl_context:
            self._http.socket = self.ssl_context.wrap_socket(self._http.socket, server_side=True)
        self.port = self._http.server_port
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        if self.grpc_open:
            options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
            self._rpc = grpc.server(ThreadPoolExecutor(32), options=[*options, ("grpc.so_reuseport", 0)])
            from qdrant_client.grpc.points_service_pb2_grpc import add_PointsServicer_to_server
            from qdrant_client.grpc.qdrant_pb2_grpc import add_QdrantServicer_to_server

            add_PointsServicer_to_server(_Points(self), self._rpc)
            add_QdrantServicer_to_server(_Health(self), self._rpc)
            address = f"127.0.0.1:{self.grpc_port}"
            if self.certificate:
                credentials = grpc.ssl_server_credentials([self.certificate])
                self.grpc_port = self._rpc.add_secure_port(address, credentials)
            else:
                self.grpc_port = self._rpc.add_insecure_port(address)
            self._rpc.start()
        return self

    def stop(self) -> None:
        if self._rpc is not None:
            self._rpc.stop(None).wait()
            self._rpc = None
        if self._http is not None:
            self._http.shutdown()
            self._http.server_close()
            self._http.close_all()
            self._http = None

    def __enter__(self) -> FakeQdrant:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
        if self.twin is not None:
            self.twin.close()

    def named(self, name: str) -> list[Request]:
        """Return the requests of one name so far."""
        return [request for request in self.requests if request.name == name]

    def carry_out(
        self, protocol: str, name: str, body: Any, size: int, key: str | None, call: Callable[[], Any]
    ) -> Any:
        """Record a request, and refuse or answer it."""
        self.requests.append(Request(protocol, name, body, size))
        if self.api_key is not None and key != self.api_key and name != "greet":
            raise Refusal(401, grpc.StatusCode.UNAUTHENTICATED, "Invalid API key or JWT")
        for i, (whose, refusal) in enumerate(self.failures):
            if whose == name:
                del self.failures[i]
                raise refusal
        self.before(name)
        with self._lock, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                answer = call()
            except ValueError as error:
                if "not found" in str(error) and "ollection" in str(error):
                    raise Refusal(404, grpc.StatusCode.NOT_FOUND, f"Not found: {error}") from error
                raise invalid(f"Wrong input: {error}") from error
        self.after(name)
        return answer

    # -- operations of both protocols

    def create(self, name: str, raw: dict[str, Any]) -> bool:
        if name in self.aliases():
            raise Refusal(
                400,
                grpc.StatusCode.INVALID_ARGUMENT,
                f"Wrong input: Can't create collection with name {name}. Alias with the same name already exists",
            )
        if self.engine.collection_exists(name):
            raise Refusal(
                409, grpc.StatusCode.ALREADY_EXISTS, f"Wrong input: Collection `{name}` already exists!"
            )
        asked = models.CreateCollection(**raw)
        if self.twin is not None:
            self.twin.create(name, asked)
        return self.engine.create_collection(
            name,
            vectors_config=asked.vectors,
            sparse_vectors_config=asked.sparse_vectors,
            metadata=asked.metadata,
        )

    def info(self, name: str) -> Any:
        info = json.loads(self.engine.get_collection(name).model_dump_json())
        info["payload_schema"] = {
            path: {"data_type": kind, "points": 0} for path, kind in self.indexes.get(name, {}).items()
        }
        if self.states:
            state = self.states.pop(0)
            if state in ("green", "yellow", "grey", "red"):
                info["status"] = state
            else:
                info["optimizer_status"] = {"error": state}
        if self.twin is not None:
            info["config"] |= self.twin.operator.as_said()
            self.twin.optimise(name)  # a server does this by itself; ``optimize`` polls until it is done
        if self.strict:
            info["config"]["strict_mode_config"] = {"enabled": True, **self.strict}
        return info

    def index(self, name: str, path: str, kind: str, wait: bool) -> Any:
        self.indexes.setdefault(name, {})[spelled(path)] = kind
        return self.written(wait)

    def delete(self, name: str, selector: Any, wait: bool) -> Any:
        self.check_filter(name, getattr(selector, "filter", None), "unindexed_filtering_update")
        by_id = isinstance(selector, models.PointIdsList)
        gone = selector.points if by_id else self.passing(name, selector.filter) or []
        self.check_budget(len(gone), "Write")
        if self.twin is not None:
            self.twin.delete(name, [str(point) for point in gone])
        self.engine.delete(name, selector)
        return self.written(wait)

    def aliases(self) -> dict[str, str]:
        """Return the collection behind each alias."""
        return {alias.alias_name: alias.collection_name for alias in self.engine.get_aliases().aliases}

    def drop(self, name: str) -> bool:
        if name in self.aliases():
            return False
        self.indexes.pop(name, None)
        if self.twin is not None:
            self.twin.drop(name)
        return self.engine.delete_collection(name)

    def written(self, wait: bool) -> dict[str, Any]:
        status = self.statuses.pop(0) if self.statuses else "completed" if wait else "acknowledged"
        return {"operation_id": 0, "status": status}

    def check_limit(self, value: int | None, limit: str, name: str) -> None:
        most = self.strict.get(limit)
        if most is not None and value is not None and value > most:
            raise strict(f'Limit exceeded {value} > {most} for "{name}"')

    def check_budget(self, cost: int, kind: str) -> None:
        """Refuse requests that cost more than a minute's tokens, as a server always does; tokens are not counted."""
        if cost > self.strict.get(f"{kind.lower()}_rate_limit", cost):
            raise Refusal(
                429,
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"Rate limiting exceeded: {kind} rate limit exceeded, request larger than rate limiter capacity, "
                "please try to split your request",
            )

    def retrieve(self, name: str, ids: list[Any], payload: bool, vectors: Any) -> Any:
        self.check_budget(len(ids), "Read")
        return self.engine.retrieve(name, ids, with_payload=payload, with_vectors=vectors)

    def check_exact(self, exact: bool | None) -> None:
        if exact and self.strict.get("search_allow_exact") is False:
            raise strict("Exact search disabled!")

    def check_filter(
        self, name: str, asked: models.Filter | None, rule: str = "unindexed_filtering_retrieve"
    ) -> None:
        """Check a request in the same way as lib/collection/src/operations/verification/mod.rs."""
        if self.strict.get(rule) is False:
            for path, kinds in needs_of(asked):
                if self.indexes.get(name, {}).get(path) not in kinds:
                    raise strict(
                        f'Index required but not found for "{path}" of one of the following types: '
                        f"[{', '.join(kinds)}]. Help: Create an index for this key or use a different filter."
                    )
        sizes = list(sizes_of(asked))
        self.check_budget(1 + len(sizes), "Read")
        most = self.strict.get("filter_max_conditions", len(sizes))
        if len(sizes) > most:
            raise strict(f"Filter condition limit reached ({len(sizes)} > {most})")
        largest = max(sizes, default=0)
        if largest > self.strict.get("condition_max_size", largest):
            raise strict(f"Condition size limit reached ({largest} > {self.strict['condition_max_size']})")

    def count(self, name: str, asked: models.Filter | None, exact: bool) -> Any:
        self.check_filter(name, asked)
        self.check_exact(exact)
        return self.engine.count(name, asked, exact=exact)

    def upsert(self, name: str, points: list[models.PointStruct]) -> Any:
        self.check_limit(len(points), "upsert_max_batchsize", "upsert limit")
        self.check_budget(len(points), "Write")
        for point in points:
            for using, vector in point.vector.items():
                point.vector[using] = self._as_stored(name, using, vector)
        if self.twin is not None:
            self.twin.upsert(name, points)
        return self.engine.upsert(name, points, wait=True)

    def search(self, name: str, requests: list[models.QueryRequest]) -> list[models.QueryResponse]:
        self.check_limit(len(requests), "search_max_batchsize", "search batch size")
        filters = [(stages_of(request) or [request])[0].filter for request in requests]
        self.check_budget(sum(1 + len(list(sizes_of(asked))) for asked in filters), "Read")
        for request in requests:
            stages = stages_of(request)
            for part in (request, *stages):
                self.check_limit(part.limit, "max_query_limit", "limit")
                self.check_filter(name, part.filter)
                if part.params is not None:
                    self.check_exact(part.params.exact)
                    self.check_limit(part.params.hnsw_ef, "search_max_hnsw_ef", "hnsw_ef")
            has_graph = not (request.using or "").startswith("multi")
            if self.strict.get("search_allow_exact") is False and not stages and not has_graph:
                raise strict(f"Request is forbidden on '{request.using}' (hnsw_config.m = 0)")
            assert isinstance(request.query, models.NearestQuery)
            request.query.nearest = self._as_stored(name, request.using, request.query.nearest)
        if self.twin is None:
            return self.engine.query_batch_points(name, requests)
        return [
            self.twin.search(name, request, self.passing(name, (stages_of(request) or [request])[0].filter))
            for request in requests
        ]

    def passing(self, name: str, asked: models.Filter | None) -> list[str] | None:
        """Return the points that pass a filter, or None without a filter."""
        if asked is None:
            return None
        records, _ = self.engine.scroll(name, asked, limit=10**6, with_payload=False)
        return [str(record.id) for record in records]

    def _as_stored(self, name: str, using: str, vector: Any) -> Any:
        if isinstance(vector, models.SparseVector):
            if len(set(vector.indices)) < len(vector.indices):
                raise invalid("Validation error: must be unique")
            return vector
        params = self.engine.get_collection(name).config.params.vectors
        assert isinstance(params, dict)
        if using not in params:
            raise invalid(f"Wrong input: Not existing vector name error: {using}")
        if params[using].multivector_config is not None:
            array = np.array(vector, dtype=np.float32)
            if array.ndim != 2 or array.size >= MAX_FLOATS:
                raise invalid(f"Validation error: {array.size} floats, must be less than {MAX_FLOATS}")
            if params[using].datatype == models.Datatype.FLOAT16:
                array = array.astype(np.float16).astype(np.float32)
            return array.tolist()
        return np.array(vector, dtype=np.float32).tolist()


class _Http(ThreadingHTTPServer):
    fake: FakeQdrant
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, *args: Any) -> None:
        self._sockets: set[Any] = set()
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._sockets.add(request)
        super().process_request(request, client_address)

    def close_all(self) -> None:
        """Close the connections that clients keep open, like a server that stops."""
        for open_socket in self._sockets:
            with contextlib.suppress(OSError):
                open_socket.shutdown(2)
            open_socket.close()
        self._sockets.clear()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnect and failed handshakes: they are not failures of the server."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Http

    def log_message(self, *_: object) -> None:
        """Log nothing."""

    def _answer(self) -> None:
        fake = self.server.fake
        length = int(self.headers.get("Content-Length") or 0)
        raw = self.rfile.read(length)
        path = self.path.partition("?")[0].strip("/").split("/")
        name, call = self._route(fake, path, json.loads(raw) if raw and length <= MAX_BODY_BYTES else {})
        try:
            if length > MAX_BODY_BYTES:
                raise Refusal(
                    400,
                    grpc.StatusCode.INVALID_ARGUMENT,
                    f"JSON payload ({length} bytes) is larger than allowed (limit: {MAX_BODY_BYTES} bytes).",
                )
            result = fake.carry_out("REST", name, raw, length, self.headers.get("api-key"), call)
            status, headers = 200, {}
            answer = result if name == "greet" else {"result": result, "status": "ok", "time": 0.0}
        except Refusal as refusal:
            status, headers = refusal.status, refusal.headers
            answer = {"status": {"error": refusal.message}, "time": 0.0}
        body = json.dumps(answer, default=lambda model: json.loads(model.model_dump_json())).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_PUT = do_POST = do_DELETE = do_PATCH = _answer

    def _route(self, fake: FakeQdrant, path: list[str], body: Any) -> tuple[str, Callable[[], Any]]:
        engine, wait = fake.engine, "wait=true" in self.path
        collection = path[1] if len(path) > 1 else ""
        match self.command, path[0], path[2:]:
            case "GET", "", []:
                greeting = {
                    "title": "qdrant - vector search engine",
                    "version": fake.version,
                    "commit": "0" * 40,
                }
                return "greet", lambda: greeting
            case "PUT", "collections", []:
                return "create", lambda: fake.create(collection, body)
            case "GET", "aliases", []:
                return "aliases", lambda: engine.get_aliases()
            case "GET", "collections", [] if not collection:
                return "list", lambda: engine.get_collections()
            case "GET", "collections", []:
                return "info", lambda: fake.info(collection)
            case "PATCH", "collections", []:
                changed = {"metadata": body["metadata"]} if body.get("metadata") else {}
                return "update", lambda: engine.update_collection(collection, **changed)
            case "DELETE", "collections", []:
                return "drop", lambda: fake.drop(collection)
            case "PUT", "collections", ["index"]:
                return "index", lambda: fake.index(collection, body["field_name"], body["field_schema"], wait)
            case "PUT", "collections", ["points"]:
                points = [models.PointStruct(**point) for point in body.get("points", ())]
                return "upsert", lambda: fake.upsert(collection, points)
            case "POST", "collections", ["points"]:
                return "retrieve", lambda: fake.retrieve(
                    collection, body["ids"], body["with_payload"], body["with_vector"]
                )
            case "POST", "collections", ["points", "query", "batch"]:
                asked = [models.QueryRequest(**request) for request in body.get("searches", ())]
                return "search", lambda: fake.search(collection, asked)
            case "POST", "collections", ["points", "count"]:
                asked_filter = models.Filter(**body["filter"]) if body.get("filter") else None
                return "count", lambda: fake.count(collection, asked_filter, body["exact"])
            case "POST", "collections", ["points", "scroll"]:
                return "scroll", lambda: self._scroll(fake, collection, body)
            case "POST", "collections", ["points", "delete"]:
                selector = models.PointIdsList(**body) if "points" in body else models.FilterSelector(**body)
                return "delete", lambda: fake.delete(collection, selector, wait)
        raise AssertionError(f"the fake knows no {self.command} {self.path}")

    @staticmethod
    def _scroll(fake: FakeQdrant, collection: str, body: Any) -> dict[str, Any]:
        asked = models.Filter(**body["filter"]) if body.get("filter") else None
        fake.check_limit(body["limit"], "max_query_limit", "limit")
        fake.check_filter(collection, asked)
        points, offset = fake.engine.scroll(
            collection,
            scroll_filter=asked,
            limit=body["limit"],
            offset=body.get("offset"),
            with_payload=body["with_payload"],
        )
        return {"points": points, "next_page_offset": offset}


class _Health:
    def __init__(self, fake: FakeQdrant) -> None:
        self._fake = fake

    def HealthCheck(self, request: Any, context: grpc.ServicerContext) -> Any:
        return pb.HealthCheckReply(title="qdrant - vector search engine", version=self._fake.version)


class _Points:
    def __init__(self, fake: FakeQdrant) -> None:
        self._fake = fake

    def __getattr__(self, name: str) -> Any:
        def unknown(request: Any, context: grpc.ServicerContext) -> Any:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, name)

        return unknown

    def _carry_out(
        self, name: str, request: Any, context: grpc.ServicerContext, call: Callable[[], Any]
    ) -> Any:
        key = dict(context.invocation_metadata()).get("api-key")
        try:
            return self._fake.carry_out("gRPC", name, request, request.ByteSize(), key, call)
        except Refusal as refusal:
            context.set_trailing_metadata(tuple((k.lower(), v) for k, v in refusal.headers.items()))
            context.abort(refusal.code, refusal.message)

    def Upsert(self, request: Any, context: grpc.ServicerContext) -> Any:
        points = [GrpcToRest.convert_point_struct(point) for point in request.points]
        self._carry_out(
            "upsert", request, context, lambda: self._fake.upsert(request.collection_name, points)
        )
        status = pb.UpdateStatus.Completed if request.wait else pb.UpdateStatus.Acknowledged
        return pb.PointsOperationResponse(result=pb.UpdateResult(operation_id=0, status=status))

    def QueryBatch(self, request: Any, context: grpc.ServicerContext) -> Any:
        asked = [GrpcToRest.convert_query_points(query) for query in request.query_points]
        answers = self._carry_out(
            "search", request, context, lambda: self._fake.search(request.collection_name, asked)
        )
        for hit in (hit for answer in answers for hit in answer.points):
            hit.payload = hit.payload or {}
        return pb.QueryBatchResponse(
            result=[
                pb.BatchResult(result=[RestToGrpc.convert_scored_point(hit) for hit in answer.points])
                for answer in answers
            ]
        )

    def Get(self, request: Any, context: grpc.ServicerContext) -> Any:
        ids = [GrpcToRest.convert_point_id(id) for id in request.ids]
        payload = list(request.with_payload.include.fields) or request.with_payload.enable
        names = list(request.with_vectors.include.names)
        vectors = names or request.with_vectors.enable
        records = self._carry_out(
            "retrieve",
            request,
            context,
            lambda: self._fake.retrieve(request.collection_name, ids, payload, vectors),
        )
        for record in records:
            record.payload = record.payload or {}
        return pb.GetResponse(result=[RestToGrpc.convert_record(record) for record in records])


if __name__ == "__main__":  # in a separate process, so that it does not share the tests' interpreter lock
    with FakeQdrant() as alone:
        seconds = float(sys.argv[1]) if sys.argv[1:] else 0.0
        alone.before = lambda name: time.sleep(seconds if name == "search" else 0)
        print(alone.port, alone.grpc_port, flush=True)
        threading.Event().wait()
