"""What each RPC does: functions `(request message, call)` that answer the call, and their table for the transports."""
