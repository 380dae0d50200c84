"""The only door to torch: networks, training, and the way from a checkpoint to a model repository entry.

Reading order: `architecture` (what a network is, as data), `cbam` and `bam` (one paper each), `resnet`, `checkpoint`,
`datasets`, `measure` (accuracy), `augment`, `training`, `servable` (uint8 pictures in, every output out),
`onnx_writer`, `parity`, `record` (commands and versions for the card), `entry` (the files of one model version).
"""
