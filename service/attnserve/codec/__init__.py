"""Messages <-> the contract's nouns. Pure: no queue, no thread, no gRPC call objects."""
