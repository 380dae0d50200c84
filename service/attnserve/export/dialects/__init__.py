"""Other people's checkpoints: which code wrote one, and the same network in our names.

Reading order: `dialect` (what is said about one source), `by_shape` (attention whose parts may have any name), `table`
(every source we know), `shapes` (the architecture that a set of shapes spells), `files` (reading what nobody vouches
for), `loader` (the way from a path to a checkpoint of ours), `report` (all of it in words).
"""
