"""Whether engines do what this server believes of them: what was predicted against what was.

Owns the comparison of a decision with what followed from it: the host that served it, the blocks
that its pod then announced, the tokens that the engine says it reused, and the ids that pods give
for one text. It decides nothing and corrects only the ledger of load and predictions. Nothing
here waits on the path of a request, and no prompt is kept: token ids of a bounded few are, until
they have been compared.
"""
