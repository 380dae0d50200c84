"""Triton's Python backend: ONNX Runtime on one thread per instance, all requests of a batch in one run."""

import json

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as triton


class TritonPythonModel:
    """What Triton looks for."""

    def initialize(self, args):
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        file = json.loads(args["model_config"])["parameters"]["file"]["string_value"]
        self.session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        parts = [triton.get_input_tensor_by_name(request, "images").as_numpy() for request in requests]
        images = parts[0] if len(parts) == 1 else np.concatenate(parts)
        found = self.session.run(["probabilities"], {"images": images})[0]
        answers, first = [], 0
        for part in parts:
            tensor = triton.Tensor("probabilities", found[first : first + len(part)])
            answers.append(triton.InferenceResponse([tensor]))
            first += len(part)
        return answers
