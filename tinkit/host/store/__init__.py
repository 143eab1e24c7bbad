"""The feature store: what the teacher says about every view, computed once, written once, memory-mapped ever after.

A folder named by the hash of everything that made it (`identity`), opened or begun (`opening`), filled in shards (`build`,
`writer`, `shards`), read by picture and view (`reader`). A kill at any moment costs the batches in flight; a flipped bit
is refused; several processes fill one store together; rows that another store holds are not computed again (`reuse`).
"""

from tinkit.host.store.build import Job
from tinkit.host.store.identity import SCHEMA, TAP, identity_of
from tinkit.host.store.opening import ignore_interrupt, open_or_build
from tinkit.host.store.reader import FeatureStore

__all__ = ["SCHEMA", "TAP", "FeatureStore", "Job", "identity_of", "ignore_interrupt", "open_or_build"]
