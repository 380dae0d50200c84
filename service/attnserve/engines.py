"""What a model version runs on: opens the backend that the configuration asks for, warms it, and says how many run.

The only place that knows which kinds of backend there are; knows no card and no scheduler.
"""

from __future__ import annotations

from pathlib import Path

from attnserve import cpu_engine
from attnserve import placement as placing
from attnserve.cores import available_cores, memory_nodes
from attnserve.cpu_engine import Crew, OpenSession
from attnserve.engine import Engine
from attnserve.errors import ConfigError
from attnserve.gpu.engine import open_on_gpus
from attnserve.gpu.plan import GpuOptions
from attnserve.inference import model_config_pb2 as pb
from attnserve.latency_table import LatencyTable
from attnserve.openvino_backend import OpenVinoModel
from attnserve.placement import CpuOptions, Placement
from attnserve.served_graph import warm_up_sizes
from attnserve.session import CPU, OnnxBackend, choose_provider


def open_engine(
    path: Path,
    config: pb.ModelConfig,
    provider: str,
    workers: int,
    gpu: GpuOptions,
    cpu: CpuOptions = CpuOptions(),  # noqa: B008  # it cannot change
) -> Engine:
    """Open a model file and warm it at every batch size; blocks for seconds.

    Args:
        path: The ONNX file.
        config: Its `instance_group` goes before the other arguments.
        provider: `auto`, `cpu`, `openvino`, `cuda` or `tensorrt`.
        workers: How many run at once, on a GPU for each; 0 chooses.
        gpu: How it runs on GPUs.
        cpu: How it runs on a CPU.

    Raises:
        ConfigError: It cannot be run, or not on the provider asked for.
    """
    instances = config.instance_group[0] if config.instance_group else pb.ModelInstanceGroup()
    kinds = {pb.ModelInstanceGroup.KIND_CPU: "openvino" if provider == "openvino" else "cpu"}
    if provider in ("auto", "cpu", "openvino"):  # tensorrt is a way to run on a GPU
        kinds[pb.ModelInstanceGroup.KIND_GPU] = "cuda"
    wanted = kinds.get(instances.kind, provider)
    chosen = choose_provider(wanted)
    if chosen != CPU:
        found = open_on_gpus(path, config, chosen, instances.count or workers, gpu, strict=wanted != "auto")
        if found is not None:
            return found
    crew = _crew(path, wanted == "openvino", cpu, instances.count or workers)
    return _warm(path, config, crew)


def _crew(path: Path, with_openvino: bool, cpu: CpuOptions, workers: int) -> Crew:
    """On the CPU: placed as told, or as measures best where that is asked for."""

    def by_openvino(workers: int, threads: int) -> OpenVinoModel:
        return OpenVinoModel(path, workers, threads, cpu.openvino_precision)

    def by_onnx_runtime(_workers: int, threads: int) -> OnnxBackend:
        return OnnxBackend(path, threads)

    open_session: OpenSession = by_openvino if with_openvino else by_onnx_runtime
    pools = not with_openvino
    nodes = placing.within_quota(memory_nodes(), available_cores())
    told = placing.parsed(cpu.placement)
    if workers:
        told = Placement(workers, told.threads if told else 1)
    elif cpu.placement == placing.AUTO:
        told = placing.candidates(nodes)[0]
    if told:
        return cpu_engine.open_crew(open_session, told, nodes, pools=pools)
    try:
        return cpu_engine.best_crew(open_session, cpu.placement, nodes, measure=cpu_engine.measured, pools=pools)
    except ConfigError:
        raise
    except Exception as error:  # no engine has one class for a graph that fails
        raise ConfigError(f"{path}: it cannot be measured: {error}") from error


def _warm(path: Path, config: pb.ModelConfig, crew: Crew) -> Engine:
    try:
        table = LatencyTable(cpu_engine.warm_up(crew, warm_up_sizes(config.max_batch_size)))
    except Exception as error:  # no engine has one class for a graph that fails
        raise ConfigError(f"{path}: the warm-up failed: {error}") from error
    session = crew.sessions[0]
    return Engine(
        crew.backends,
        session.provider,
        table,
        session.height,
        session.width,
        session.output_types,
        session.output_shapes,
        placement=str(crew.placement),
        unbound=session.backend(),
    )
