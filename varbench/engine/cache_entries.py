"""Arithmetic on cache entries: what attention pays them, how those that go are merged, and how they are stored.

Letters: R rows (images x branches), H heads of a group, n entries, m observed queries, k entries that stay, c head size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from varbench.plan.owned import RowPolicies
from varbench.plan.steps import Plan
from varbench.policies import StoredForm


def attention_paid(queries_RHmc: Tensor, keys_RHnc: Tensor, *, softmax_scale: float, seen_mn: Tensor | None) -> Tensor:
    """What each entry is paid by some queries together, (R, H, n) in float32."""
    scores_RHmn = (queries_RHmc @ keys_RHnc.to(queries_RHmc.dtype).transpose(2, 3)).mul_(softmax_scale)
    if seen_mn is not None:
        scores_RHmn.masked_fill_(~seen_mn, -torch.inf)
    return scores_RHmn.softmax(dim=-1, dtype=torch.float32).sum(dim=2)


def merged(
    keys_RHnc: Tensor, values_RHnc: Tensor, places_RHk: Tensor, weights_RHn: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Keys and values of the entries that stay, each the mean of its own and of those that go and have the nearest key; by their
    weights, where there are any."""
    keys, values = keys_RHnc.float(), values_RHnc.float()
    normed_RHnc = F.normalize(keys, dim=-1)
    stay_RHkc = normed_RHnc.gather(2, places_RHk.unsqueeze(-1).expand(-1, -1, -1, keys.shape[-1]))
    into_RHn = (normed_RHnc @ stay_RHkc.transpose(2, 3)).argmax(dim=-1)
    into_RHn.scatter_(2, places_RHk, torch.arange(places_RHk.shape[2], device=keys.device).expand_as(places_RHk))
    # As products, which add up in one order everywhere; scattered sums do not on a GPU.
    share_RHkn = F.one_hot(into_RHn, places_RHk.shape[2]).transpose(2, 3).float()
    if weights_RHn is not None:
        share_RHkn *= weights_RHn.float().unsqueeze(2)
    share_RHkn /= share_RHkn.sum(dim=-1, keepdim=True)
    return (share_RHkn @ keys).to(keys_RHnc.dtype), (share_RHkn @ values).to(values_RHnc.dtype)


class PlainForm:
    """Keys and values as they are, each in a type."""

    plain = True

    def __init__(self, key_dtype: torch.dtype, value_dtype: torch.dtype) -> None:
        self._key_dtype, self._value_dtype = key_dtype, value_dtype

    def stores(self, dtype: torch.dtype) -> bool:
        """Whether what is computed in this type is stored as it is."""
        return self._key_dtype == self._value_dtype == dtype

    def stored(self, keys: Tensor, values: Tensor) -> tuple[Tensor, ...]:
        return keys.to(self._key_dtype), values.to(self._value_dtype)

    def read(self, parts: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        keys, values = parts
        return keys, values


class EncodedForm:
    """Keys and values as a strategy encodes them: what is made of keys, then what is made of values."""

    plain = False

    def __init__(self, form: StoredForm) -> None:
        self._form = form

    def stores(self, dtype: torch.dtype) -> bool:
        return False

    def stored(self, keys: Tensor, values: Tensor) -> tuple[Tensor, ...]:
        return (*self._form.encode(keys), *self._form.encode(values))

    def read(self, parts: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        half = len(parts) // 2
        return self._form.decode(parts[:half]), self._form.decode(parts[half:])


def stored_form(plan: Plan, row: RowPolicies, dtype: torch.dtype) -> PlainForm | EncodedForm:
    """How a row's keys and values are stored."""
    for owned in row.caches:
        if owned.policy.form is not None:
            return EncodedForm(owned.policy.form)
    store = getattr(torch, plan.cache_dtype) if plan.cache_dtype else dtype
    return PlainForm(torch.float32 if plan.float32_keys else store, store)
