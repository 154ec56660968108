"""SONYC-UST (DCASE 2019 and 2020 Task 5) as a TFDS data set."""

from tfds_dcase.sonyc_ust.availability import (
  NotAvailableError,
  check_available,
)
from tfds_dcase.sonyc_ust.sonyc_ust import (
  SonycUst,
  check_mixed_versions,
  make_builder,
)

__all__ = [
  'NotAvailableError',
  'SonycUst',
  'check_available',
  'check_mixed_versions',
  'make_builder',
]
