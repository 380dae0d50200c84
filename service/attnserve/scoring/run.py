"""Runs a job: lists the input, finds what is left to do, has it scored and written, and sums up.

INPUT -> Listing -> Job -> chunks of the shards that are left -> Workers -> shards in the Store -> Summary
                           or the shards that are left -> Ray actors ---^
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from attnserve.client import Client, ClientError, Tls
from attnserve.cores import available_cores
from attnserve.decode import DecodeLimits
from attnserve.errors import AttnserveError, ConfigError
from attnserve.scoring import embedded, ray_engine, remote, shards
from attnserve.scoring.inputs import listed
from attnserve.scoring.job import Job, Settings
from attnserve.scoring.listing import Listing
from attnserve.scoring.progress import Progress
from attnserve.scoring.rows import Tally
from attnserve.scoring.scratch import scratch
from attnserve.scoring.shard_writer import Task
from attnserve.scoring.store import Store, store_of
from attnserve.scoring.workers import Recipe, Workers
from attnserve.session import CPU, choose_provider

MIB = 1 << 20
ENGINES = ("local", "ray")
_CHUNK_BATCHES = 8  # handed to a worker at once: its pipeline fills up and empties once for each
_MOST_BATCH = 32  # larger ones gain little
_REMOTE_CHUNK = 128  # all of whose files are held at once
_REMOTE_WORKERS = 2  # processes that keep streams open: what one client process can send is less than most servers take
_REMOTE_READERS = 8  # threads of each that wait for files


class TooManyErrors(AttnserveError):
    """More pictures failed than the job may have."""


@dataclass(frozen=True)
class Options:
    """What to score, by what, and how; see `attnserve.scoring.score`."""

    input: str
    output: str
    model: str
    version: str = ""
    target: str | None = None
    model_repository: str | os.PathLike[str] | None = None
    top_k: int = 5
    full_probabilities: bool = True
    maps: Sequence[str] = ()
    map_form: str = "png"
    shard_rows: int = 10_000
    shard_index: int = 0
    shard_count: int = 1
    engine: str = "local"
    ray_address: str = ray_engine.LOCAL
    workers: int = 0
    batch_size: int = 0
    provider: str = "auto"
    priority: int = remote.PRIORITY
    max_errors: int | None = None
    patience_s: float = 600.0
    max_image_bytes: int = 32 * MIB
    max_image_pixels: int = 64_000_000
    tls: Tls | None = None
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if (self.target is None) == (self.model_repository is None):
            raise ConfigError("give --target HOST:PORT or --model-repository DIR, not both: who scores the pictures")
        if self.target is None and (self.tls is not None or self.token is not None):
            raise ConfigError("TLS and a token are for a server: they need --target")
        if self.engine not in ENGINES:
            raise ConfigError(f"engine must be one of {', '.join(ENGINES)}, got {self.engine!r}")
        if self.shard_count < 1:
            raise ConfigError(f"shard_count must be at least 1, got {self.shard_count}")
        if not 0 <= self.shard_index < self.shard_count:
            most, count = self.shard_count - 1, self.shard_count
            raise ConfigError(f"shard_index must be within 0..{most}, got {self.shard_index}: shard_count is {count}")
        for name in ("workers", "batch_size", "max_errors"):
            if (getattr(self, name) or 0) < 0:
                raise ConfigError(f"{name} must not be negative, got {getattr(self, name)}")
        if not self.patience_s >= 0:  # nor not a number
            raise ConfigError(f"patience_s must be at least 0, got {self.patience_s}")


@dataclass
class Summary:
    """What a run did, and what the shards hold by now that it is responsible for.

    Attributes:
        tally: Of all its shards, those of earlier runs included.
        scored: Pictures that this run scored.
        skipped: Pictures in shards that earlier runs had written.
        seconds: Of this run, so far.
        pictures_left, shards_left: Of this run's share.
        shards_done: Likewise, by earlier runs too.
    """

    job: Job
    labels: tuple[str, ...]
    tally: Tally = field(default_factory=Tally)
    scored: int = 0
    skipped: int = 0
    seconds: float = 0.0
    pictures_left: int = 0
    shards_done: int = 0
    shards_left: int = 0

    @property
    def pictures_per_s(self) -> float:
        """Of this run."""
        return self.scored / self.seconds if self.seconds else 0.0


Watch = Callable[[Summary], object]
"""Told of how far a run is, on its thread: once that is known, after each chunk and after each shard. Returns soon."""


@dataclass(frozen=True)
class _Engine:
    """Who scores: how scorers are made, how many at once, and how much each is given.

    Attributes:
        workers: 0, with Ray only, is as many as there is room for.
        gpus: For each of them, where it runs.
    """

    settings: Settings
    labels: tuple[str, ...]
    recipe: Recipe
    workers: int
    chunk: int
    gpus: int = 0


def run(
    options: Options,
    *,
    quiet: bool = False,
    stdin: Iterable[str] | None = None,
    watch: Watch = lambda _: None,
) -> Summary:
    """Score what is left of a job; blocks.

    Raises:
        ConfigError: The input, the model or the output cannot be used.
        TooManyErrors: `max_errors` is exceeded; what is written stays, and a run with a higher limit goes on.
        ClientError: The server was away for longer than `patience_s`.
        InputGone: The folder of the input is not there any more.
        WorkerDied: A picture kills whoever decodes it.
    """
    began = time.monotonic()
    engine = _remote(options) if options.target is not None else _embedded(options)
    store = store_of(options.output)
    with scratch() as folder:
        listing = Listing.write(listed(options.input, stdin=stdin), folder / "items")
        job = Job(engine.settings, listing.count, listing.digest)
        store.begin(job)
        summary = Summary(job, engine.labels)

        def tell() -> None:
            summary.seconds = time.monotonic() - began
            watch(summary)

        _score(options, engine, store, listing, summary, quiet, tell)
    summary.seconds = time.monotonic() - began
    return summary


def _score(
    options: Options,
    engine: _Engine,
    store: Store,
    listing: Listing,
    summary: Summary,
    quiet: bool,
    tell: Callable[[], None],
) -> None:
    job, mine = summary.job, range(options.shard_index, summary.job.shards, options.shard_count)
    written = shards.done(store, job)
    for shard in mine:
        summary.tally.add(written.get(shard, Tally()))
    summary.skipped = summary.tally.rows
    left = [shard for shard in mine if shard not in written]

    def heard(part: Tally) -> None:
        progress.add(part.rows, part.errors)
        summary.scored += part.rows
        summary.tally.add(part)
        summary.pictures_left -= part.rows
        tell()
        check_errors()

    def check_errors() -> None:
        if options.max_errors is not None and summary.tally.errors > options.max_errors:
            raise TooManyErrors(f"more than {options.max_errors} pictures failed (--max-errors)")

    def say(text: str) -> None:
        if not quiet:
            print(f"attnserve score: {text}", file=sys.stderr)

    def wrote() -> None:
        summary.shards_done, summary.shards_left = summary.shards_done + 1, summary.shards_left - 1
        tell()

    check_errors()
    summary.pictures_left = sum(len(job.rows_of(shard)) for shard in left)
    summary.shards_done, summary.shards_left = len(mine) - len(left), len(left)
    tell()
    with Progress(summary.pictures_left, quiet=quiet) as progress:
        if options.engine == "ray" and left:
            output = options.output if "://" in options.output else os.path.abspath(options.output)
            task = Task(engine.recipe, job, engine.labels, output, engine.chunk)
            cluster = ray_engine.Cluster(options.ray_address, engine.workers, engine.gpus, options.patience_s)

            def heard_whole(part: Tally) -> None:
                heard(part)
                wrote()

            ray_engine.score(task, cluster, left, listing.items, heard_whole, say)
            return
        with Workers(engine.recipe, engine.workers) as workers:
            results = workers.scored(shards.chunks(job, left, listing.items, engine.chunk))
            for shard in left:
                shards.write(store, job, shard, engine.labels, results, heard)
                wrote()


def _settings(options: Options, version: str, card_digest: str) -> Settings:
    return Settings(
        options.model,
        version,
        card_digest,
        options.top_k,
        options.full_probabilities,
        options.shard_rows,
        tuple(dict.fromkeys(options.maps)),
        options.map_form,
    )


def _embedded(options: Options) -> _Engine:
    assert options.model_repository is not None
    repository = Path(options.model_repository)
    files = embedded.files_of(repository, options.model, options.version)
    settings = _settings(options, files.key.version, files.card.digest)
    embedded.check_maps(settings, files.card)
    batch = options.batch_size or min(files.config.max_batch_size or 1, _MOST_BATCH)
    if by_ray := options.engine == "ray":  # what the nodes have, this machine does not know
        on_cpu = options.provider in ("auto", "cpu")
    else:
        on_cpu = choose_provider(options.provider) == CPU
    workers = options.workers or (0 if by_ray else available_cores() if on_cpu else 1)
    decoders = 1 if on_cpu else 0  # each CPU worker has a core, which a second thread would not widen
    limits = DecodeLimits(options.max_image_bytes, options.max_image_pixels)
    provider = "cpu" if on_cpu else options.provider
    recipe = embedded.Embedded(repository.absolute(), settings, provider, batch, decoders, limits)
    return _Engine(settings, files.labels, recipe, workers, batch * _CHUNK_BATCHES, int(not on_cpu))


def _remote(options: Options) -> _Engine:
    assert options.target is not None
    with Client(options.target, client_id=remote.CLIENT_ID, tls=options.tls, token=options.token) as client:
        try:
            info = client.model(options.model, options.version)
        except ClientError as error:
            if error.code != "NOT_FOUND":
                raise
            raise ConfigError(f"--target: {options.target}: {error.message}") from error
    settings = _settings(options, info.version, info.card_digest)
    remote.check_maps(settings, info)
    recipe = remote.Remote(
        options.target,
        settings,
        len(info.labels),
        _REMOTE_READERS,
        options.max_image_bytes,
        options.priority,
        options.patience_s,
        options.tls,
        options.token,
    )
    chunk = options.batch_size or _REMOTE_CHUNK
    return _Engine(settings, tuple(info.labels), recipe, options.workers or _REMOTE_WORKERS, chunk)
