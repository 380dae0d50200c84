"""Models on GPUs, by ONNX Runtime's CUDA or TensorRT provider.

Reading order: `plan` (what can be chosen, pure), `bound_backend` (batches through buffers that stay, over a device),
`one_thread` (its thread), `ort_device` and `pinned_copies` (that device), `capture_gate` (nobody works beside a
capture), `tuning` (tries plans), `tensorrt` (its options and cache), `engine` (joins them); `nvml` and `metrics` (what
the cards do).
"""
