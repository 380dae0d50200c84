"""mosec: raw pixels in, float32 probabilities out; one process per core, each with ONNX Runtime on one thread.

Takes from the environment: MODEL_FILE, WORKERS, MAX_BATCH_SIZE.
"""

import os

import numpy as np
import onnxruntime as ort
from mosec import Server, Worker


class Classifier(Worker):
    """What mosec runs in each process."""

    resp_mime_type = "application/octet-stream"

    def __init__(self):
        super().__init__()
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = ort.InferenceSession(os.environ["MODEL_FILE"], options, providers=["CPUExecutionProvider"])
        self.shape = self.session.get_inputs()[0].shape[1:]

    def deserialize(self, data):
        return np.frombuffer(data, np.uint8).reshape(self.shape)

    def forward(self, data):
        return list(self.session.run(["probabilities"], {"images": np.stack(data)})[0])

    def serialize(self, data):
        return data.tobytes()


if __name__ == "__main__":
    server = Server()
    # 1 ms is the least that it takes; 0 means its default of 10 ms
    server.append_worker(
        Classifier, num=int(os.environ["WORKERS"]), max_batch_size=int(os.environ["MAX_BATCH_SIZE"]), max_wait_time=1
    )
    server.run()
