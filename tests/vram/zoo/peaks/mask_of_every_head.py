"""A causal mask [1, 1, N, N] is copied out to [B, H, N, N]; the difference to the broadcast one goes with N squared."""
# expect: RatioExceeded
# says: copied needs *
# says: * N^2 bytes*
# suggests: expanded mask

import torch
from torch.nn.functional import scaled_dot_product_attention


def attend(n, *, copied):
    query = torch.ones(1, 8, n, 8)
    mask = torch.ones(n, n, dtype=torch.bool).tril()[None, None]
    if copied:
        mask = mask.expand(1, 8, n, n).contiguous()
    return scaled_dot_product_attention(query, query, query, attn_mask=mask)


def test_a_mask_is_broadcast(vram):
    lengths = [32, 64, 96, 128, 160, 192]
    copied = vram.replay(lambda n: attend(n, copied=True), lengths, name="copied")
    broadcast = vram.replay(lambda n: attend(n, copied=False), lengths, name="broadcast")
    vram.assert_ratio(copied, broadcast, at_most=1.0, lengths=lengths)
