"""Whether a map shows what the answer rests on: the published measures, as pure functions over numpy arrays.

Knows no client, no server and no files; what answers is a function from pictures to probabilities. Reading order:
`ranking` (pixels in the order of a map), `curves` (deletion, insertion), `confidence` (average drop, increase), `road`
(noisy linear imputation), `foreground` (one thing on a plain wall), `references` (maps that know nothing), `study` (all
of them for one picture), `bootstrap` (intervals), `report` (the record of many pictures).
"""
