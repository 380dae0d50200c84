"""One self-contained HTML page about a job: what was predicted, how surely, what failed, what was slow.

Owns the page's words and markup; the look and the escaping are those of `attnserve.report`. Every text that comes from
a file's name, a label or an error is escaped, and the page's own policy forbids any request. Reads no shard.
"""

from __future__ import annotations

from collections.abc import Iterable

from attnserve.report import head, text
from attnserve.scoring.rows import Tally
from attnserve.scoring.run import Options, Summary

MOST_CLASSES = 50  # listed; the rest are summed up
MOST_CAUSES = 30

STYLE_OF_NUMBERS = ".number { white-space: nowrap; text-align: right; }"


def page(summary: Summary, options: Options, date: str, stopped: str = "") -> str:
    """The whole page.

    Args:
        date: When it is made.
        stopped: Why the run ended before its time.
    """
    tally = summary.tally
    title = f"{summary.job.settings.model} scored {tally.rows:,} pictures"
    return f"""{head(title, STYLE_OF_NUMBERS)}
<p class="lead">{_lead(summary)}</p>
{f"<p><b>Not finished</b>: {text(stopped)}</p>" if stopped else ""}
{_facts(summary, options, date)}
<h2>Predicted class</h2>
{_classes(tally)}
<h2>Probability of the predicted class</h2>
{_confidences(tally)}
{_errors(tally)}
{_slowest(tally, options)}
</body>
</html>
"""


def _lead(summary: Summary) -> str:
    tally = summary.tally
    line = f"{tally.rows - tally.errors:,} have scores"
    line += f', <a href="#errors">{tally.errors:,} failed</a>' if tally.errors else ", none failed"
    return line + (f"; {summary.pictures_left:,} are left." if summary.pictures_left else ".")


def _facts(summary: Summary, options: Options, date: str) -> str:
    job, tally = summary.job, summary.tally
    settings = job.settings
    rate = f"{summary.scored:,} pictures in {summary.seconds:,.1f} s, {summary.pictures_per_s:,.1f} a second"
    shares = f", share {options.shard_index} of {options.shard_count}" if options.shard_count > 1 else ""
    facts = {
        "model": f"{text(settings.model)} version {text(settings.version)}",
        "card": f"<code>{text(settings.card_digest)}</code>",
        "scored by": text(_scorers(options)),
        "input": f"{text(options.input)}, {job.count:,} pictures",
        "input's digest": f"<code>{text(job.input_digest)}</code>",
        "output": text(options.output),
        "shards": f"{summary.shards_done:,} done, {summary.shards_left:,} left{shares}",
        "rows": text(_columns(summary)),
        "this run": rate + (f"; {summary.skipped:,} had been scored before" if summary.skipped else ""),
        "files": f"{tally.read_bytes / 1e6:,.1f} MB read",
        "made": text(date),
    }
    return "<dl>" + "".join(f"<dt>{name}</dt><dd>{value}</dd>\n" for name, value in facts.items()) + "</dl>"


def _scorers(options: Options) -> str:
    if options.target:
        return f"the server {options.target}"
    return (
        f"actors of a Ray cluster ({options.ray_address})" if options.engine == "ray" else "processes of this machine"
    )


def _columns(summary: Summary) -> str:
    settings = summary.job.settings
    full = "the probabilities of all classes" if settings.full else "no probabilities of the other classes"
    maps = f"; maps as {settings.map_form}: {', '.join(settings.maps)}" if settings.maps else ""
    return f"the best {settings.top_k}, {full}{maps}; {settings.shard_rows:,} rows a shard"


def _classes(tally: Tally) -> str:
    if not tally.labels:
        return "<p>No picture has scores.</p>"
    listed = tally.labels.most_common(MOST_CLASSES)
    rest = len(tally.labels) - len(listed)
    others = tally.labels.total() - sum(number for _, number in listed)
    more = f'<p class="faint">and {rest:,} rarer classes, {others:,} pictures</p>' if rest else ""
    return _bars(listed) + more


def _confidences(tally: Tally) -> str:
    width = 1 / len(tally.confidences)
    return _bars((f"{at * width:.2f} to {(at + 1) * width:.2f}", number) for at, number in enumerate(tally.confidences))


def _bars(counted: Iterable[tuple[str, int]]) -> str:
    """Lines of a label, a bar and a number; the longest bar is full."""
    counted = list(counted)
    most, total = max(number for _, number in counted) or 1, sum(number for _, number in counted) or 1
    lines = "".join(
        f'<span class="label">{text(label)}</span>'
        f'<span class="track"><i style="width:{number / most:.1%}"></i></span>'
        f'<span class="number">{number:,} <span class="faint">({number / total:.1%})</span></span>\n'
        for label, number in counted
    )
    return f'<div class="predictions">\n{lines}</div>'


def _errors(tally: Tally) -> str:
    if not tally.errors:
        return ""
    listed = tally.causes.most_common(MOST_CAUSES)
    rows = "".join(
        f'<tr><td class="number">{number:,}</td><td>{text(error)}</td><td>{text(name)}</td></tr>\n'
        for cause, number in listed
        for name, error in (tally.examples[cause],)
    )
    rest = len(tally.causes) - len(listed)
    more = f'<p class="faint">and {rest} rarer causes</p>' if rest else ""
    return f"""<h2 id="errors">Failed</h2>
<table class="errors"><thead><tr><th scope="col">pictures</th><th scope="col">error, of one of them</th>
<th scope="col">its id</th></tr></thead>
<tbody>
{rows}</tbody></table>{more}
"""


def _slowest(tally: Tally, options: Options) -> str:
    if not tally.slowest:
        return ""
    what = "read" if options.target else "read and decode"
    rows = "".join(
        f'<tr><td class="number">{1000 * seconds:,.1f} ms</td><td>{text(name)}</td></tr>\n'
        for seconds, name in tally.slowest
    )
    return f"""<h2>Slowest to {what}</h2>
<table class="errors"><thead><tr><th scope="col">took</th><th scope="col">id</th></tr></thead>
<tbody>
{rows}</tbody></table>
"""
