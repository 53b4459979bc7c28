"""From blocks that a source holds to prompt tokens that it need not compute. Pure arithmetic."""


def reusable_tokens(depth: int, block_size: int | None, prompt_tokens: int) -> int:
    """Tokens of a prompt that a source with `depth` leading blocks of it reuses.

    Whole blocks only, and never the whole prompt: an engine computes at least the last token, so
    of a prompt that ends on a block's border it computes that block again (vLLM, every version
    recorded). Without a block size, or without a prompt, nothing is reused.
    """
    if not block_size or prompt_tokens <= 0 or depth <= 0:
        return 0
    return min(depth, (prompt_tokens - 1) // block_size) * block_size
