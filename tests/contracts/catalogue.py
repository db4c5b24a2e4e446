"""All contracts, in the order in which people read them."""

from __future__ import annotations

from tests.contracts import pairs, scales, states, steps, torch_alone
from tests.contracts.contract import contracts_of

CONTRACTS = contracts_of([steps, scales, states, pairs, torch_alone])
