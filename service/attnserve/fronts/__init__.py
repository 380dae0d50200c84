"""Several processes that speak gRPC and decode pictures, before the one that runs the models.

One process of Python makes a GPU wait: whatever it does for a call, it does under one lock. With
`transport_processes` N *fronts* listen on one port (SO_REUSEPORT, so the kernel spreads connections over them), each a
whole server but for its engines: those are in the process that started them, the *host*. A front hands batches over
through shared memory, and the host forms batches of what all fronts handed over.

Reading order: `lane` (memory and messages between the two), `remote` (engines as a front sees them), `host` (the
engines), `merged` (metrics of all as one), `front` (a front's process), `supervisor` (starts, watches and ends them).
"""
