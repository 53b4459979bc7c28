"""An Envoy external processor that routes LLM requests by the KV cache of the engines."""

__version__ = "0.1.0"
