"""What every benchmark here is made of. Reading order:

* `cells` (what can be measured, and what is by default), `entries` (the models), `pictures` (what is sent, and what is
  right).
* The generator: `events`, `http2` and `http1` (wires without sockets), `messages` (requests and the checks of their
  answers), `load` (the closed loop).
* `ceiling` (raw ONNX Runtime), `processes` (servers, their CPU time and memory), `measure` (both side by side).
* `session` (the cells of a model), `results`, `table` and `plot` (JSON, Markdown and PNG), `command` (all of it).

A benchmark of another engine needs a `Ceiling` with its execution provider, and servers started with its flags:
`command.run(..., ceiling_of=partial(Ceiling, providers=...))` and `Contender(..., partial(attnserve, flags=...))`.
"""
