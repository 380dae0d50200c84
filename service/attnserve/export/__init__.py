"""The only door to torch: networks, training, and the way from a checkpoint to a model repository entry.

Reading order: `architecture` (what a network is, as data), `cbam` and `bam` (one paper each), `resnet`, `checkpoint`,
`datasets`, `augment`, `training`, `servable` (uint8 pictures in, every output out), `onnx_writer`, `parity`,
`entry` (the files of one model version).
"""
