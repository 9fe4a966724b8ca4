"""Finds blocks of the KV cache that already hold the beginning of a request. Free of torch.

A full block's key is a SHA-256 over the key of the block before it and its own tokens, so equal keys mean equal tokens
from the first one on. A request's own full blocks get their keys when they are computed; they are found in use or, as
long as nobody needed their memory, afterwards. Only full blocks are shared, hence no shared block is ever written.
"""

from array import array
from hashlib import sha256
from typing import NamedTuple

from flashgen_runtime.engine.block_pool import BlockPool
from flashgen_runtime.engine.request import Request


class PrefixMatch(NamedTuple):
    """The blocks that hold a request's beginning."""

    blocks: list[int]

    # How many of them count as free until they are taken.
    num_free: int

    # Whether a running request is about to compute the block behind them.
    is_expected: bool


class PrefixCache:
    """Keys of blocks beside a `BlockPool`; references are the scheduler's part."""

    def __init__(self, pool: BlockPool, *, block_size: int) -> None:
        self._pool = pool
        self._block_size = block_size

        # Keys of blocks that running requests are about to compute.
        self._expected: dict[bytes, Request] = {}

    def match(self, request: Request) -> PrefixMatch:
        """What can be shared with a request that holds no blocks; its last token is always left to compute."""
        extend_keys(request, block_size=self._block_size)
        blocks: list[int] = []
        num_free = 0
        is_expected = False
        for key in request.block_keys[: (len(request.token_ids) - 1) // self._block_size]:
            block = self._pool.find(key)
            if block is None:
                is_expected = key in self._expected
                break
            blocks.append(block)
            num_free += self._pool.num_references(block) == 0
        return PrefixMatch(blocks, num_free, is_expected)

    def expect(self, request: Request) -> None:
        """Notes that a request that just started will compute the full blocks behind those it shares."""
        for key in request.block_keys[request.num_named_blocks :]:
            self._expected.setdefault(key, request)

    def name_computed(self, request: Request) -> None:
        """Makes the full blocks that a request has computed known."""
        extend_keys(request, block_size=self._block_size)
        num_full = request.num_computed_tokens // self._block_size
        for index in range(request.num_named_blocks, num_full):
            self._pool.name(request.block_table[index], request.block_keys[index])
        self._unexpect(request, until=num_full)
        request.num_named_blocks = num_full

    def forget(self, request: Request) -> None:
        """The request gives its blocks back: it will not compute what was expected of it."""
        self._unexpect(request, until=len(request.block_keys))
        request.num_named_blocks = 0

    def _unexpect(self, request: Request, *, until: int) -> None:
        for key in request.block_keys[request.num_named_blocks : until]:
            if self._expected.get(key) is request:
                del self._expected[key]


def extend_keys(request: Request, *, block_size: int) -> None:
    """Makes the keys of all full blocks that have none yet."""
    keys = request.block_keys
    start = len(keys) * block_size
    if len(request.token_ids) - start < block_size:
        return
    key = keys[-1] if keys else sha256(request.cache_salt).digest()
    tokens = memoryview(array("i", request.token_ids[start:])).cast("B")
    block_bytes = block_size * 4
    for end in range(block_bytes, len(tokens) + 1, block_bytes):
        key = sha256(key + tokens[end - block_bytes : end]).digest()
        keys.append(key)
