"""Generated from protos/attnserve/inference: the Open Inference Protocol v2 in Triton's wire form.

Its package name is `inference`, as tritonclient's, so one process can import either but not both.
"""
