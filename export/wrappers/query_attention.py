"""memory_attention for some of a frame's tokens -> query_attention: each object brings its own queries, every cell gets an answer.

    tokens + code = x [1,N,C] ─ means of 2x2 cells ─► [N + N/4, C] ─ query_position ─► queries [B,K,C] ─ layers ─► y
    update = y - queries;  conditioned = norm(x + update[source]), and norm(x) where source is -1

What is spread over the grid is the layers' update of the residual stream, not its value. So a cell with a query of its own gets what
memory_attention would give it, the four cells of a merged query keep what tells them apart, and a cell that takes no query's update keeps
the residual stream as it entered the layers. There is no first self-attention shared by the batch: objects have different queries.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fastsam2.export.wrappers.memory_attention import MemoryAttentionCore


class QueryAttentionGraph(MemoryAttentionCore):
    """Chosen tokens, and means of 2x2 cells, are queries."""

    def forward(
        self,
        tokens: torch.Tensor,
        query_position: torch.Tensor,
        source: torch.Tensor,
        memory: torch.Tensor,
        position: torch.Tensor,
        age: torch.Tensor,
        pointers: torch.Tensor,
        pointer_offset: torch.Tensor,
        memory_bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Inputs and outputs as in `contracts.graph_spec(QUERY_ATTENTION, target)`."""
        x = tokens + self.token_position
        queries = F.embedding(query_position, self.with_means(x)[0])
        update = self.run_layers(queries, query_position, memory, position, age, pointers, pointer_offset, memory_bias) - queries
        rows = torch.cat([torch.zeros_like(update[0, :1]), update.flatten(0, 1)])  # row 0 for cells without a source
        first = torch.arange(update.shape[0], dtype=source.dtype).unsqueeze(1) * update.shape[1] + 1
        spread = F.embedding(torch.where(source < 0, torch.zeros_like(source), source + first), rows)
        normed: torch.Tensor = self.norm(x + spread)
        return normed

    def with_means(self, x: torch.Tensor) -> torch.Tensor:
        """Rows of all cells and, after them, of the 2x2 cells: [1, N, C] -> [1, N + N/4, C]."""
        half = self.spec.grid // 2
        means = x.unflatten(1, (half, 2, half, 2)).mean(dim=(2, 4)).flatten(1, 2)
        return torch.cat([x, means], dim=1)
