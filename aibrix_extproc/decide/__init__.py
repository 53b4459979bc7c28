"""One decision: body → prompt → tokens → depth → load → decision.

`decider` owns the order of the steps and the deadline, `plan` what a request asks for and who may
serve it, `view` what is known of those at the moment of the choice, `booking` what follows from a
decision: load, predictions, counters. The room knows no Envoy message, no ZMQ and no Kubernetes:
it joins `extproc.openai`, the tokenizer, the index and `routing`.
"""

from aibrix_extproc.decide.decider import Decider

__all__ = ["Decider"]
