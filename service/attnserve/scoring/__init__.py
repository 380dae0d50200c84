"""Batch scoring: pictures in, Parquet shards out, restartable and with nothing lost.

Reading order: `items` (the noun), `inputs` (with `inputs_*`: what can be named, and how it is read), `listing` (the
input written down), `job` (what is to be done), `store` and `scratch` (where it goes), `rows` (what is written),
`embedded` and `remote` (who scores), `workers` (side by side), `shards`, `shard_writer` and `ray_engine` (on many
machines), `progress`, `run` (which joins them), `job_metrics` and `report` (what is told of it), `verify` and `scores`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attnserve.scoring.scores import Scores

__all__ = ["score"]


def score(
    input: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    model: str,
    quiet: bool = True,
    stdin: Iterable[str] | None = None,
    **options: Any,
) -> Scores:
    """What `attnserve score` does: score what is left of a job, and return what it has written.

    Worker processes import the script that calls this, so a script calls it under `if __name__ == "__main__":`.

    Args:
        input: A folder, pattern, manifest, tar or Parquet file, a URL of these, or `-` for the lines of `stdin`.
        output: Folder or URL for the shards.
        model: Its name.
        quiet: Show no progress on stderr.
        options: As of the command line, with `_` for `-`: `target` or `model_repository`, and any of `version`,
            `top_k`, `full_probabilities`, `maps` (a sequence), `map_form`, `shard_rows`, `shard_index`, `shard_count`,
            `engine`, `ray_address`, `workers`, `batch_size`, `provider`, `priority`, `max_errors`, `patience_s`,
            `max_image_bytes`, `max_image_pixels`, `tls` (an `attnserve.client.Tls`), `token`.

    Raises:
        ConfigError: The input, the model or the output cannot be used, or the output is another job's.
        TooManyErrors: `max_errors` is exceeded; a run with a higher limit goes on from there.
        ClientError: The server was away for longer than `patience_s`; so does a later run.
        InputGone: The folder of the input is not there any more.
        WorkerDied: A picture kills whoever decodes it.
    """
    from attnserve.scoring.run import Options, run
    from attnserve.scoring.scores import Scores

    settings = Options(input=os.fspath(input), output=os.fspath(output), model=model, **options)
    return Scores(settings.output, run(settings, quiet=quiet, stdin=stdin))
