"""attnserve: attention-augmented image classifiers, served with the evidence for each answer.

Two halves share one contract, the model repository. Reading order:

* Shared: `errors` (the one table of failures), `card` (what a model version is), `preprocess` (picture to view).
* The nouns: `contract`. The policy: `batch_queue`. The workers: `scheduler`. The engines: `served_graph` (what all
  demand), `session` (ONNX Runtime), `openvino_backend` (optional), `placement` (how cores are dealt out), `cpu_engine`
  (opens and measures placements), `engine` (what comes of it), `engines` (which backend, and how many).
* On a GPU: `gpu`, a map of its own.
* Models: `model_config` (config.pbtxt), `repository` (files, verified; by `model_files`, `onnx_check` and `signers`),
  `models` (loaded, found by name), `memory` and `loading` (files to a warm model), `lifecycle` (what to load, serve,
  keep, retire), `keeper` (does it) and `control` (when).
* One way through: `admission`, `decode`, `picture_pool`, `decode_pool`, `postprocess`, and `pipeline`, which joins
  them.
* The wire: `codec` (messages <-> nouns), `handlers` (what each RPC does), `transport` (gRPC: `grpcio`, or `native` with
  `grpcio` behind it; REST, optional: `rest_server`, `rest`, `rest_routes`, `rest_errors`), `http_server`.
* Who may ask: `access` (rights, grants), `access_table` (by token or certificate), `access_file` (read as it changes),
  `rate_limit`; certificates: `pem`, and the transport's `tls`.
* What is heard: `listeners`, `statistics`, `metrics` (with `distribution` and `triton_metrics`), `drift` (of answers),
  `logs` (by the names of `correlation`), `tracing` (optional). The whole: `config`, `cores`, `trimming`
  (of memory), `server`; several processes as one: `fronts`, a map of its own.
* What is measured: `datasets` (labelled pictures, by `class_folders`: what their names mean), `measure` (accuracy),
  `faithfulness` (of maps, pure), `served` (a model behind a client, as functions), `record` (how it was done, for the
  card).
* For users: `client`, `tiles` (large pictures), `cli` and `commands`; the maps of an answer as `map_files`, by
  `evidence` (which and on what scale), `render` (the figure), `canvas` (pixels or SVG) and `fonts`; a folder of them as
  `report`, by `review` (what counts and comes first).
* Batch scoring: `scoring`, a map of its own.
* `export`: the only door to torch; its `explain` writes the Grad-CAM graphs beside a model. `v1` and `inference`:
  generated from protos/.
"""
