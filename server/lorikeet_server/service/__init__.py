"""gRPC over a Unix socket: decode, call the engine, encode. No computation and no decision happens here."""
