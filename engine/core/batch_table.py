"""BatchTable: the running sequences as arrays, one slot each, which a step reads without a loop over them.

Does not know tensors or scheduling. It holds only numbers, so that another process can read it through shared
memory; everything else (grammars, rules of logits, text) stays in the Sequence.
"""

from __future__ import annotations

import contextlib
import mmap
from multiprocessing.shared_memory import SharedMemory
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pagefleet.engine.sampling.sampling_params import SamplingParams

if TYPE_CHECKING:
    from pagefleet.engine.core.sequence import Sequence

__all__ = ["BatchTable", "Slots"]

Slots = NDArray[np.int32]

NUM_STOP_IDS: Final = 4
"""Stop tokens of a sequence that the table holds. The stop tokens of one with more are checked one by one."""

_NO_TOP_K: Final = np.iinfo(np.int64).max
_MAX_INT32: Final = int(np.iinfo(np.int32).max)
_LARGE_COLUMN: Final = 2**20
"""Bytes from which a column gets pages of its own."""

_COLUMNS: Final = {
    "num_tokens": np.int32,
    "num_booked": np.int32,
    "num_in_flight": np.int32,
    "num_computed": np.int32,
    "num_prompt_tokens": np.int32,
    "num_slots": np.int32,
    "max_num_tokens": np.int32,
    "serial": np.int64,
    "is_guest": np.bool_,
    "may_draft": np.bool_,
    "is_checked": np.bool_,
    "takes_eos": np.bool_,
    "min_num_tokens": np.int32,
    "temperature": np.float64,
    "top_k": np.int64,
    "top_p": np.float64,
    "min_p": np.float64,
    "typical_p": np.float64,
    "seed": np.uint64,
    "choice": np.int64,
}


class _Layout(NamedTuple):
    """The shapes of a table, and the name of its shared memory."""

    num_slots: int
    max_model_len: int
    num_groups: int
    block_size: int
    max_num_blocks: int
    memory: str | None


class BatchTable:
    """The columns of all running sequences. A column is indexed by slot.

    The scheduler adds a sequence when it joins the batch and removes it when it leaves; only these calls, a
    new block and a new token change a row.

    Columns, besides the sampling parameters:
        token_ids: int32 [slots, max_model_len], prompt and output.
        num_tokens: known tokens. num_booked: tokens that steps in flight will sample; they follow the known.
        num_in_flight: steps in flight that compute the sequence.
        num_computed: tokens whose K/V are computed, those of steps in flight included.
        num_slots: tokens that its blocks can hold.
        max_num_tokens, min_num_tokens: prompt and output at which it ends, and before which it may not stop.
        block_tables: int32 [groups, slots, blocks], the sequence's blocks in order. Entries after its last
            block, and those that a window has passed, are undefined.
        serial: differs for each sequence that ever had the slot; 0 for a free slot.
        is_guest: whether more than these columns decides its tokens: rules, a grammar, logprobs.
        may_draft: whether drafts will probably follow its next token.
        is_checked: whether each of its tokens must be checked by StopChecker, not by these columns.
        takes_eos: whether an end-of-sequence token ends it. stop_ids: int32 [slots, 4], -1 if unused.

    Args:
        is_shared: allocate the columns in shared memory. Pickling the table then attaches to it.
    """

    token_ids: NDArray[np.int32]
    block_tables: NDArray[np.int32]
    stop_ids: NDArray[np.int32]
    num_tokens: NDArray[np.int32]
    num_booked: NDArray[np.int32]
    num_in_flight: NDArray[np.int32]
    num_computed: NDArray[np.int32]
    num_prompt_tokens: NDArray[np.int32]
    num_slots: NDArray[np.int32]
    max_num_tokens: NDArray[np.int32]
    serial: NDArray[np.int64]
    is_guest: NDArray[np.bool_]
    may_draft: NDArray[np.bool_]
    is_checked: NDArray[np.bool_]
    takes_eos: NDArray[np.bool_]
    min_num_tokens: NDArray[np.int32]
    temperature: NDArray[np.float64]
    top_k: NDArray[np.int64]
    top_p: NDArray[np.float64]
    min_p: NDArray[np.float64]
    typical_p: NDArray[np.float64]
    seed: NDArray[np.uint64]
    choice: NDArray[np.int64]

    def __init__(
        self,
        capacity: int,
        max_model_len: int,
        num_groups: int = 1,
        block_size: int = 16,
        *,
        is_shared: bool = False,
    ) -> None:
        max_num_blocks = -(-max_model_len // block_size) + 1
        self._layout = _Layout(capacity, max_model_len, num_groups, block_size, max_num_blocks, None)
        self._memory: SharedMemory | None = None
        if is_shared:
            size = sum(_num_bytes(dtype, shape) for dtype, shape in self._shapes().values())
            self._memory = SharedMemory(create=True, size=size)
            self._layout = self._layout._replace(memory=self._memory.name)
        self._allocate()
        self._free = list(range(capacity - 1, -1, -1))
        self._num_added = 0

    def __reduce__(self) -> tuple[Any, ...]:
        assert self._layout.memory is not None, "only a shared table can be sent to another process"
        return _attach, (self._layout,)

    def close(self) -> None:
        """Free the shared memory, if the table has any. The columns cannot be used any more."""
        if self._memory is not None:
            for name in self._shapes():
                delattr(self, name)
            self._memory.close()
            self._memory.unlink()
            self._memory = None

    def add(self, sequence: Sequence) -> None:
        """Give the sequence a free slot and copy its numbers there. It has no blocks yet."""
        slot = self._free.pop()
        self._num_added += 1
        tokens, params = sequence.token_ids, sequence.sampling_params
        self.token_ids[slot, : len(tokens)] = tokens
        self.num_tokens[slot] = len(tokens)
        self.num_booked[slot] = self.num_in_flight[slot] = self.num_computed[slot] = self.num_slots[slot] = 0
        self.num_prompt_tokens[slot] = sequence.num_prompt_tokens
        self.max_num_tokens[slot] = sequence.max_num_tokens
        self.serial[slot] = self._num_added
        has_guests = sequence.logit_rules is not None or sequence.grammar is not None
        self.is_guest[slot] = has_guests or params.logprobs is not None or params.prompt_logprobs is not None
        self.may_draft[slot] = False
        self._add_sampling(slot, sequence)
        self._add_ends(slot, sequence)
        sequence.enter(self, slot)

    def remove(self, sequence: Sequence) -> None:
        """Free the sequence's slot; it takes its tokens with it."""
        slot = sequence.slot
        sequence.leave()
        self.serial[slot] = 0
        self._free.append(slot)

    @property
    def block_size(self) -> int:
        return self._layout.block_size

    def rows(self, slot: int) -> list[NDArray[np.int32]]:
        """Return the slot's row of the block tables of each group."""
        return list(self.block_tables[:, slot])

    def _add_sampling(self, slot: int, sequence: Sequence) -> None:
        params = sequence.sampling_params
        self.temperature[slot] = params.temperature
        self.top_k[slot] = params.top_k or _NO_TOP_K
        self.top_p[slot], self.min_p[slot], self.typical_p[slot] = (
            params.top_p,
            params.min_p,
            params.typical_p,
        )
        self.seed[slot], self.choice[slot] = sequence.seed, sequence.choice

    def _add_ends(self, slot: int, sequence: Sequence) -> None:
        params: SamplingParams = sequence.sampling_params
        # A request may name tokens that no vocabulary has: they are never sampled.
        ids = [token_id for token_id in params.stop_token_ids if token_id <= _MAX_INT32]
        self.stop_ids[slot] = -1
        self.stop_ids[slot, : min(len(ids), NUM_STOP_IDS)] = ids[:NUM_STOP_IDS]
        self.is_checked[slot] = sequence.grammar is not None or len(ids) > NUM_STOP_IDS
        self.takes_eos[slot] = not params.ignore_eos
        self.min_num_tokens[slot] = min(sequence.num_prompt_tokens + params.min_tokens, _MAX_INT32)

    def _shapes(self) -> dict[str, tuple[type[np.generic], tuple[int, ...]]]:
        layout = self._layout
        shapes: dict[str, tuple[type[np.generic], tuple[int, ...]]] = {
            name: (dtype, (layout.num_slots,)) for name, dtype in _COLUMNS.items()
        }
        shapes["stop_ids"] = np.int32, (layout.num_slots, NUM_STOP_IDS)
        shapes["token_ids"] = np.int32, (layout.num_slots, layout.max_model_len)
        shapes["block_tables"] = np.int32, (layout.num_groups, layout.num_slots, layout.max_num_blocks)
        return shapes

    def _allocate(self) -> None:
        """Create the columns. The pages of a large column use memory only when they are written."""
        offset = 0
        for name, (dtype, shape) in self._shapes().items():
            if self._memory is None:
                setattr(self, name, _zeros(dtype, shape))
                continue
            setattr(self, name, np.ndarray(shape, dtype, self._memory.buf, offset))
            offset += _num_bytes(dtype, shape)


def _zeros(dtype: type[np.generic], shape: tuple[int, ...]) -> NDArray[Any]:
    """Return a column of zeros.

    numpy asks for huge pages, and one of 2 MiB contains several rows of tokens: the first token of one row
    would commit the memory of them all. So a large column is mapped without huge pages.
    """
    size = _num_bytes(dtype, shape)
    if size < _LARGE_COLUMN:
        return np.zeros(shape, dtype)
    memory = mmap.mmap(-1, size)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        # A kernel without huge pages rejects the advice.
        with contextlib.suppress(OSError):
            memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.ndarray(shape, dtype, memory)


def _num_bytes(dtype: type[np.generic], shape: tuple[int, ...]) -> int:
    """Return the bytes of a column, rounded up to 64 so that each column is aligned."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    return -(-size // 64) * 64


def _attach(layout: _Layout) -> BatchTable:
    """Return the table in another process's shared memory. That process frees the memory."""
    table = object.__new__(BatchTable)
    table._layout = layout
    table._memory = SharedMemory(name=layout.memory)
    table._allocate()
    return table
