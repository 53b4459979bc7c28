"""The command `watch`: a live view of event streams, their recordings, and the way back from those.

What is seen comes from one of three stations: sockets (`live`), recordings (`playback`) or a
running server's debug port (`server`). Each gives a `View` (`rows`): plain rows at a moment. The
first two count what passes in a `tally` for each source, by `numbers` (which are missing), `rates`
and `chains` (where in a prompt a block stands); `holdings` says who holds what. `screen`, `text`
and `terminal` show views and know no source. Event sync itself is that of `kvevents`, and blocks
are those of `index`: what is shown here is what a server would make of the same streams.
"""
