"""A gRPC server for tests that forwards every call to another server unchanged, or answers itself."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

Refusal = tuple[grpc.StatusCode, str] | bytes
"""A status with its details, or a complete response."""

_UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class GrpcRelay(grpc.GenericRpcHandler):
    """A relay between clients and the gRPC server at ``port`` of ``host``; a context manager.

    Attributes:
        port: The port on 127.0.0.1 on which it listens.
        refusals: Replacements of responses by the last part of the method's name; ``""`` is for all methods.
    """

    def __init__(self, host: str, port: int) -> None:
        self.refusals: dict[str, Refusal] = {}
        self._channel = grpc.insecure_channel(f"{host}:{port}", options=_UNLIMITED)
        self._server = grpc.server(ThreadPoolExecutor(8), handlers=[self], options=_UNLIMITED)
        self.port = self._server.add_insecure_port("127.0.0.1:0")

    def __enter__(self) -> GrpcRelay:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(None).wait()
        self._channel.close()

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        def answer(request: bytes, context: grpc.ServicerContext) -> Any:
            refusal = self.refusals.get(details.method.rpartition("/")[2], self.refusals.get(""))
            if isinstance(refusal, bytes):
                return refusal
            if refusal is not None:
                context.abort(*refusal)
            try:
                return self._channel.unary_unary(details.method)(
                    request, timeout=context.time_remaining(), metadata=context.invocation_metadata()
                )
            except grpc.RpcError as error:
                context.abort(error.code(), error.details())

        return grpc.unary_unary_rpc_method_handler(answer)
