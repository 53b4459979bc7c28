"""A load test: sessions sent open-loop to a gateway, and what was seen of the answers.

Owns words, bodies, the client, when what is due, and the stack of its own. What is asked comes from
`workloads/`, what starts processes from `stack/`; what the figures mean is `report/`'s.
"""
