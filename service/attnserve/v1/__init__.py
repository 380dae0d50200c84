"""Generated from protos/attnserve/v1: the messages and stubs of `attnserve.v1.AttentionService`."""
