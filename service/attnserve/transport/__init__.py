"""Wires: each transport serves the same table of methods (`attnserve.handlers`)."""
